"""The registers of a guest that called a firmware service, by the names a BIOS manual uses."""

from __future__ import annotations

from vdisk.hv.kvm import Regs, Sregs
from vdisk.hv.memory import GuestMemory

CARRY = 0x0001
ZERO = 0x0040
INTERRUPTS = 0x0200


class _Part:
    """Some bits of a 64-bit register, as an attribute of a `Frame`."""

    def __init__(self, register: str, shift: int, bits: int) -> None:
        self._register = register
        self._shift = shift
        self._mask = (1 << bits) - 1

    def __get__(self, frame: Frame, owner: type[Frame]) -> int:
        value: int = getattr(frame.regs, self._register)
        return value >> self._shift & self._mask

    def __set__(self, frame: Frame, value: int) -> None:
        old: int = getattr(frame.regs, self._register)
        kept = old & ~(self._mask << self._shift)
        setattr(frame.regs, self._register, kept | (value & self._mask) << self._shift)


class Frame:
    """A real-mode interrupt's view of the processor: registers, segments, the flags that IRET will restore."""

    al, ah, ax, eax = _Part("rax", 0, 8), _Part("rax", 8, 8), _Part("rax", 0, 16), _Part("rax", 0, 32)
    bl, bh, bx, ebx = _Part("rbx", 0, 8), _Part("rbx", 8, 8), _Part("rbx", 0, 16), _Part("rbx", 0, 32)
    cl, ch, cx, ecx = _Part("rcx", 0, 8), _Part("rcx", 8, 8), _Part("rcx", 0, 16), _Part("rcx", 0, 32)
    dl, dh, dx, edx = _Part("rdx", 0, 8), _Part("rdx", 8, 8), _Part("rdx", 0, 16), _Part("rdx", 0, 32)
    si, di, bp, sp = _Part("rsi", 0, 16), _Part("rdi", 0, 16), _Part("rbp", 0, 16), _Part("rsp", 0, 16)
    edi, esi = _Part("rdi", 0, 32), _Part("rsi", 0, 32)

    def __init__(self, regs: Regs, sregs: Sregs, memory: GuestMemory) -> None:
        self.regs = regs
        self.sregs = sregs
        self.memory = memory
        self.segments_changed = False

    @property
    def ds(self) -> int:
        """DS' base as a linear address."""
        return int(self.sregs.ds.base)

    @property
    def es(self) -> int:
        """ES' base as a linear address."""
        return int(self.sregs.es.base)

    def set_es(self, selector: int) -> None:
        """Load ES."""
        self.sregs.es.load_real(selector)
        self.segments_changed = True

    def jump(self, selector: int, offset: int) -> None:
        """Go on at `selector:offset` instead of behind the OUT."""
        if self.sregs.cs.selector != selector:
            self.sregs.cs.load_real(selector)
            self.segments_changed = True
        self.regs.rip = offset

    def _flags_address(self) -> int:
        return int(self.sregs.ss.base) + (self.sp + 4 & 0xFFFF)

    @property
    def flags(self) -> int:
        """The caller's FLAGS, on its stack."""
        return self.memory.read_u16(self._flags_address())

    @flags.setter
    def flags(self, value: int) -> None:
        self.memory.write_u16(self._flags_address(), value)

    def _set_flag(self, bit: int, on: bool) -> None:
        flags = self.flags
        self.flags = flags | bit if on else flags & ~bit

    @property
    def carry(self) -> bool:
        """The caller's carry flag: set for failure."""
        return bool(self.flags & CARRY)

    @carry.setter
    def carry(self, on: bool) -> None:
        self._set_flag(CARRY, on)

    def set_zero(self, on: bool) -> None:
        """The caller's zero flag."""
        self._set_flag(ZERO, on)
