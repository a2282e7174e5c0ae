"""The ROM at F0000: 64 KiB, of which almost everything is zeros.

Each interrupt vector v has a stub at F000:v*8 that traps to the host by OUT and returns with IRET; the host tells the
vector by RIP. A few handlers are native because they must end an interrupt at the controller, which lives in the
kernel: the timer tick, the keyboard, the others. They call the host through trap stubs at 800h, after the vectors.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from vdisk.hv import layout
from vdisk.hv.firmware.assembler import assemble

SEGMENT = layout.FIRMWARE >> 4
STUB_BYTES = 8
CALLS = 0x800
CALL_POST = 0
CALL_KEYBOARD = 1
TABLES = 0x1000
"""Where SMBIOS, RSDP, the MP table and other static data may lie, up to E000h."""
TABLES_END = 0xE000
NATIVE = {0x08: "tick", 0x09: "keyboard", 0x70: "clock"}
NATIVE |= dict.fromkeys(range(0x0A, 0x10), "end_first")
NATIVE |= dict.fromkeys(range(0x71, 0x78), "end_second")
SILENT = {*range(0x08), 0x1B, 0x1C, 0x1E, 0x1F, *range(0x20, 0x40), 0x41, *range(0x43, 0x4A), *range(0x4B, 0x70)}
"""Vectors that return at once: exceptions, user hooks, pointers to tables, what the operating system defines."""

_HANDLERS = """
tick:                           ; int 08h, 18.2 times a second
    push ax
    push dx
    push ds
    mov ax, 40h
    mov ds, ax
    inc dword [6Ch]
    cmp dword [6Ch], 1800B0h
    jb tick_hook
    mov dword [6Ch], 0          ; midnight
    inc byte [70h]
tick_hook:
    int 1Ch
    mov al, 20h
    out 20h, al
    pop ds
    pop dx
    pop ax
    iret
keyboard:                       ; int 09h; int 15h with AH=4Fh may change or swallow the scan code
    push ax
    in al, 60h
    mov ah, 4Fh
    stc
    int 15h
    jnc keyboard_end
    call call_keyboard
keyboard_end:
    mov al, 20h
    out 20h, al
    pop ax
    iret
clock:                          ; int 70h: reading register C acknowledges it at the clock
    push ax
    mov al, 0Ch
    out 70h, al
    in al, 71h
    mov al, 20h
    out 0A0h, al
    out 20h, al
    pop ax
    iret
end_second:
    push ax
    mov al, 20h
    out 0A0h, al
    out 20h, al
    pop ax
    iret
end_first:
    push ax
    mov al, 20h
    out 20h, al
    pop ax
    iret
wait_key:                       ; the host came here because there is no key yet: wait for an interrupt, ask again
    sti
    hlt
    cli
    jmp stub_16
wait_time:
    sti
    hlt
    cli
    jmp stub_15
halt:
    sti
    hlt
    jmp short halt
post:
    cli
    cld
    xor ax, ax
    mov ss, ax
    mov ds, ax
    mov es, ax
    mov sp, 7C00h
    call call_post
    mov al, 11h                 ; both 8259s: edge, cascade, four words
    out 20h, al
    out 0A0h, al
    mov al, 8
    out 21h, al
    mov al, 70h
    out 0A1h, al
    mov al, 4
    out 21h, al
    mov al, 2
    out 0A1h, al
    mov al, 1
    out 21h, al
    out 0A1h, al
    mov al, 0B8h                 ; timer, keyboard, cascade, diskette
    out 21h, al
    mov al, 8Fh                 ; mouse, coprocessor, disk
    out 0A1h, al
    mov al, 36h                 ; 18.2 Hz
    out 43h, al
    xor al, al
    out 40h, al
    out 40h, al
    sti
    int 19h
    jmp short halt
"""


@dataclass(frozen=True, slots=True)
class Rom:
    """The image and the offsets in it that the host needs."""

    image: bytes
    labels: dict[str, int]


@functools.cache
def build_rom() -> Rom:
    """Assemble the ROM: a pure function, done once."""
    lines = []
    for vector in range(256):
        lines += [f"org {vector * STUB_BYTES}", f"stub_{vector:02x}:"]
        if vector in NATIVE:
            lines.append(f"jmp {NATIVE[vector]}")
        elif vector in SILENT:
            lines.append("iret")
        else:
            lines += [f"out {layout.FIRMWARE_TRAP}, al", "iret"]
    for number, name in ((CALL_POST, "call_post"), (CALL_KEYBOARD, "call_keyboard")):
        lines += [f"org {CALLS + number * STUB_BYTES}", f"{name}:", f"out {layout.FIRMWARE_TRAP}, al", "ret"]
    lines.append(f"org {CALLS + 0x80}")
    lines.append(_HANDLERS)
    lines += [f"org {TABLES_END}", 'db "vdisk firmware"', f"org {0xFFF0}", f"jmp {SEGMENT}:post"]
    # The date and the model byte stand where an AT has them.
    lines += ['db "01/01/26"', f"org {0xFFFE}", "db 0FCh, 0"]
    image, labels = assemble("\n".join(lines))
    assert len(image) == layout.FIRMWARE_BYTES
    return Rom(image, labels)
