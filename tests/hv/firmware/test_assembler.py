"""The assembler gives the bytes that the processor's manual gives."""

import pytest

from vdisk.hv.firmware.assembler import AssemblyError, assemble
from vdisk.hv.firmware.rom import CALLS, NATIVE, SILENT, STUB_BYTES, build_rom


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("cli", "fa"),
        ("mov ax, 1234h", "b8 34 12"),
        ("mov dh, 0x7f", "b6 7f"),
        ("mov ds, ax", "8e d8"),
        ("mov bx, es", "8c c3"),
        ("mov si, di", "89 fe"),
        ("mov al, [7Ch]", "8a 06 7c 00"),
        ("mov [7Ch], cl", "88 0e 7c 00"),
        ("push es", "06"),
        ("pop bp", "5d"),
        ("inc byte [70h]", "fe 06 70 00"),
        ("inc dword [6Ch]", "66 ff 06 6c 00"),
        ("cmp dword [6Ch], 1800B0h", "66 81 3e 6c 00 b0 00 18 00"),
        ("xor ax, ax", "31 c0"),
        ("add dx, 1", "81 c2 01 00"),
        ("test al, 20h", "f6 c0 20"),
        ("out 20h, al", "e6 20"),
        ("in al, 60h", "e4 60"),
        ("int 13h", "cd 13"),
        ("jmp 0F000h:0FFF0h", "ea f0 ff 00 f0"),
        ('db "ab", 13, 0', "61 62 0d 00"),
        ("dw 0AA55h", "55 aa"),
        ("times 3 db 7", "07 07 07"),
    ],
)
def test_one_line(line, code):
    assert assemble(line)[0] == bytes.fromhex(code)


def test_labels_are_addresses_and_jumps_are_relative():
    code, labels = assemble("start: jmp short end\n db 1, 2\nend: call start\n dw end", origin=0x7C00)
    assert labels["end"] == 0x7C04
    assert code == bytes.fromhex("eb02 0102 e8f9ff 047c")


def test_org_and_align_fill_with_zeros():
    assert assemble("db 1\nalign 4\ndb 2\norg 8\ndb 3")[0] == bytes.fromhex("01000000 02000000 03")


@pytest.mark.parametrize("line", ["mov ax, bogus(", "frobnicate al", "jmp short nowhere", "db 1\norg 0"])
def test_what_it_does_not_know_it_refuses(line):
    with pytest.raises(AssemblyError):
        assemble(line)


def test_a_short_jump_too_far_is_refused():
    with pytest.raises(AssemblyError, match="too far"):
        assemble("jmp short end\ntimes 200 db 0\nend: hlt")


def test_the_rom_has_a_stub_for_every_vector_and_starts_at_the_reset_vector():
    rom = build_rom()
    assert len(rom.image) == 0x10000
    for vector in range(256):
        first = rom.image[vector * STUB_BYTES]
        assert first == (0xE9 if vector in NATIVE else 0xCF if vector in SILENT else 0xE6)
    assert rom.image[CALLS] == 0xE6
    assert rom.image[0xFFF0] == 0xEA
    assert int.from_bytes(rom.image[0xFFF1:0xFFF3], "little") == rom.labels["post"]
