"""Names for x86 instructions: what stood at RIP when KVM gave up, in words.

Not a disassembler. It finds the opcode behind the prefixes and names the instructions that a KVM without hardware
support is known not to emulate, and the common ones a stuck guest sits in.
"""

from __future__ import annotations

_LEGACY_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")

_ONE_BYTE = {
    0x27: "daa",
    0x2F: "das",
    0x37: "aaa",
    0x3F: "aas",
    0x62: "bound or an AVX-512 instruction",
    0x6C: "insb",
    0x6D: "insw/insd",
    0x6E: "outsb",
    0x6F: "outsw/outsd",
    0x90: "nop/pause",
    0x9B: "fwait",
    0xC8: "enter",
    0xCC: "int3",
    0xCD: "int",
    0xCE: "into",
    0xCF: "iret",
    0xD7: "xlat",
    0xE4: "in",
    0xE5: "in",
    0xE6: "out",
    0xE7: "out",
    0xEB: "jmp",
    0xE9: "jmp",
    0xEC: "in",
    0xED: "in",
    0xEE: "out",
    0xEF: "out",
    0xF1: "int1",
    0xF4: "hlt",
    0xFA: "cli",
    0xFB: "sti",
}

_TWO_BYTE = {
    0x0B: "ud2",
    0x0D: "prefetchw",
    0x18: "prefetch",
    0x30: "wrmsr",
    0x31: "rdtsc",
    0x32: "rdmsr",
    0x33: "rdpmc",
    0x77: "emms/vzeroupper",
    0xA2: "cpuid",
    0xB9: "ud1",
    0xB8: "popcnt",
    0xBC: "tzcnt/bsf",
    0xBD: "lzcnt/bsr",
    0xC3: "movnti",
    0xFF: "ud0",
}

_GROUP_01 = {
    0xC1: "vmcall",
    0xC8: "monitor",
    0xC9: "mwait",
    0xCA: "clac",
    0xCB: "stac",
    0xD0: "xgetbv",
    0xD1: "xsetbv",
    0xD9: "vmmcall",
    0xEE: "rdpkru",
    0xEF: "wrpkru",
    0xF8: "swapgs",
    0xF9: "rdtscp",
}
_GROUP_AE_MEMORY = ("fxsave", "fxrstor", "ldmxcsr", "stmxcsr", "xsave", "xrstor", "xsaveopt/clwb", "clflush")
_GROUP_AE_REGISTER = ("rdfsbase", "rdgsbase", "wrfsbase", "wrgsbase", "", "lfence", "mfence", "sfence")
_GROUP_C7_MEMORY = ("", "cmpxchg8b", "", "xrstors", "xsavec", "xsaves", "vmptrld", "vmptrst")


def _name_two_byte(code: bytes, opcode: int, *, is_64bit: bool, rex: int) -> str:
    modrm = code[0] if code else 0
    register = modrm >> 3 & 7
    if opcode == 0x01 and modrm in _GROUP_01:
        return _GROUP_01[modrm]
    if opcode == 0xAE:
        return (_GROUP_AE_REGISTER if modrm >= 0xC0 else _GROUP_AE_MEMORY)[register] or "an unknown instruction"
    if opcode == 0xC7:
        if modrm >= 0xC0:
            return {6: "rdrand", 7: "rdseed"}.get(register, "an unknown instruction")
        if register == 1 and is_64bit and rex & 8:
            return "cmpxchg16b"
        return _GROUP_C7_MEMORY[register] or "an unknown instruction"
    if opcode in _TWO_BYTE:
        return _TWO_BYTE[opcode]
    if 0x10 <= opcode <= 0x17 or 0x28 <= opcode <= 0x2F or 0x50 <= opcode <= 0x7F:
        return "an SSE instruction"
    if 0xC2 <= opcode <= 0xC6 or 0xD0 <= opcode <= 0xFE:
        return "an SSE instruction"
    if opcode in (0x38, 0x3A):
        return "an SSSE3, SSE4, AES or MOVBE instruction"
    return ""


def name_instruction(code: bytes, bits: int) -> str:
    """The instruction that `code` begins with, in a segment of `bits` (16, 32 or 64): "cmpxchg16b (48 0f c7 0f)"."""
    at = 0
    while at < len(code) and code[at] in _LEGACY_PREFIXES:
        at += 1
    rex = 0
    if bits == 64 and at < len(code) and code[at] & 0xF0 == 0x40:
        rex = code[at]
        at += 1
    name = ""
    if at < len(code):
        opcode = code[at]
        if opcode == 0x0F and at + 1 < len(code):
            name = _name_two_byte(code[at + 2 :], code[at + 1], is_64bit=bits == 64, rex=rex)
            at += 1
        elif opcode in (0xC4, 0xC5) and (bits == 64 or code[at + 1 : at + 2] >= b"\xc0"):
            name = "an AVX instruction"
        elif 0xD8 <= opcode <= 0xDF:
            name = "an x87 instruction"
        else:
            name = _ONE_BYTE.get(opcode, "")
    shown = code[: min(len(code), at + 3)].hex(" ")
    return f"{name} ({shown})" if name else f"the instruction {shown}"
