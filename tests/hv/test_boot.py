"""Whole machines on /dev/kvm: what small guests do, and what the verdict says of them."""

from __future__ import annotations

import hashlib

import pytest

from samples.make_samples import MESSAGE, hello_disk
from tests import peers
from tests.hv import guests
from tests.hv.guests import disk_of, guest, needs_kvm
from vdisk.hv.boot import boot
from vdisk.hv.machine import Machine
from vdisk.hv.pace import instructions_per_second, slowness
from vdisk.hv.profiles import CONTROLLERS
from vdisk.hv.signs import Stage

pytestmark = [pytest.mark.kvm, needs_kvm]


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_the_sample_greets_on_screen_and_serial_port(controller):
    result = boot(disk_of(hello_disk()), controller=controller, expect="is running", timeout=20)
    assert result.ok
    assert result.kind == "expected text"
    assert MESSAGE in result.serial
    assert result.stage == Stage.BOOT_SECTOR


@pytest.mark.parametrize("profile", ["kvm", "vmware", "virtualbox", "hyper-v", "xen", "parallels"])
def test_every_profile_boots(profile):
    machine = Machine(profile, [disk_of(hello_disk())], 32 << 20)
    with machine:
        machine.start()
        assert machine.run(lambda m: "is running" in m.screen_text(), timeout=20)
        smbios = machine.read_memory(0xF1000, 0x400)
        assert machine.config.profile.product.encode() in smbios
        assert machine.config.profile.version.encode() in smbios


@pytest.mark.peer
@pytest.mark.parametrize("controller", CONTROLLERS)
def test_seabios_boots_the_same_disk(controller):
    firmware = peers.require_file(guests.SEABIOS, "seabios").read_bytes()
    rom = peers.require_file(guests.VGA_BIOS, "seabios").read_bytes()
    result = boot(
        disk_of(hello_disk()),
        controller=controller,
        firmware=firmware,
        option_rom=rom,
        memory_bytes=64 << 20,
        expect="is running",
        timeout=60,
    )
    assert result.ok, result.reason
    assert f"Booting from Hard Disk...\n{MESSAGE}" in result.screen


def test_without_a_goal_a_boot_sector_that_halts_is_no_success():
    result = boot(disk_of(hello_disk()), timeout=30)
    assert not result.ok
    assert (result.kind, result.stage) == ("halted", Stage.BOOT_SECTOR)


def test_a_disk_without_a_signature_is_told_apart():
    result = boot(disk_of(b""), timeout=20)
    assert result.kind == "nothing to boot"
    assert "no boot signature" in result.reason
    assert result.stage == Stage.FIRMWARE


def test_a_triple_fault_is_told_apart():
    # Protected mode with an empty interrupt descriptor table: no exception can be delivered, nor can the one after.
    fault = """
    cli
    lidt [empty]
    db 0Fh, 20h, 0C0h           ; mov eax, cr0
    or al, 1
    db 0Fh, 22h, 0C0h           ; mov cr0, eax
    ud2
empty: dw 0, 0, 0
"""
    result = boot(guest(fault), timeout=20)
    assert result.kind == "triple fault"


def test_a_reset_loop_is_told_apart():
    result = boot(guest("mov al, 0FEh\nout 64h, al\ncall stop"), timeout=20)
    assert result.kind == "reset loop"
    assert "4 times" in result.reason


def test_a_guest_that_switches_itself_off_has_not_failed_to_be_noticed():
    result = boot(guest("mov dx, 604h\nmov ax, 3400h\nout dx, ax\ncall stop"), timeout=20)
    assert result.kind == "power off"


_WRITER = """
    mov ax, 0301h               ; write one sector, number 2, from 7C00h
    mov bx, 7C00h
    mov cx, 2
    mov dx, 80h
    int 13h
    jc stop
    mov si, text
    call print
    call stop
text: db "written", 0
"""


def test_a_guests_write_leaves_the_disk_as_it_was():
    disk = guest(_WRITER)
    before = hashlib.sha256(disk.data).digest()
    assert boot(disk, expect="written", timeout=20).ok
    assert hashlib.sha256(disk.data).digest() == before


def test_with_write_it_reaches_the_disk():
    disk = guest(_WRITER)
    assert boot(disk, expect="written", write=True, timeout=20).ok
    assert disk.sectors(1, 1) == disk.sectors(0, 1)


def test_what_is_sent_without_a_look_at_the_status_comes_whole_and_in_order():
    # These writes gather in the kernel's ring, which is smaller than they are many.
    send = """
    mov cx, 1000
    mov al, 30h
    mov dx, 3F8h
next:
    out dx, al
    add al, 1
    cmp al, 3Ah
    jb counted
    mov al, 30h
counted:
    loop next
    mov al, 2Eh
    out dx, al
    call stop
"""
    result = boot(guest(send), expect="9.", timeout=20)
    assert result.serial == "0123456789" * 100 + "."
    assert result.exits < 1000


def test_the_cursor_is_where_gathered_writes_have_put_it():
    move = """
    mov dx, 3D4h
    mov ax, 010Eh               ; index and data in one word: row 4, column 16
    out dx, ax
    mov al, 0Fh
    out dx, al
    mov dx, 3D5h
    mov al, 50h
    out dx, al
    call stop
"""
    with Machine("kvm", [guest(move)], 16 << 20) as machine:
        machine.start()
        assert machine.run(lambda m: (screen := m.screen()) is not None and screen.cursor == (4, 16), timeout=20)


def test_keys_reach_the_guest_by_the_bios():
    echo = """
again:
    xor ax, ax
    int 16h
    mov dx, 3F8h
    out dx, al
    jmp short again
"""
    result = boot(guest(echo), keys="Hello, World!\\n", expect="Hello, World!", timeout=20)
    assert result.ok


def test_keys_can_wait_for_a_text():
    ask = """
    mov si, text
    call print
    xor ax, ax
    int 16h
    mov dx, 3F8h
    out dx, al
    mov si, text
    call print
    call stop
text: db "ready? ", 0
"""
    disk = guest("mov cx, 0FFFFh\nspin: loop spin\n" + ask)
    result = boot(disk, keys="<expect ready?>y", expect="ready? yready?", timeout=20)
    assert result.ok


def test_the_timer_ticks():
    wait = """
    mov ah, 0
    int 1Ah
    mov bx, dx
later:
    hlt
    mov ah, 0
    int 1Ah
    sub dx, bx
    cmp dx, 3
    jb later
    mov si, text
    call print
    call stop
text: db "ticked", 0
"""
    assert boot(guest(wait), expect="ticked", timeout=20).ok


def test_a_wait_by_int_15h_ends():
    wait = """
    mov ah, 86h
    mov cx, 1                   ; 65536 microseconds
    xor dx, dx
    int 15h
    mov si, text
    call print
    call stop
text: db "waited", 0
"""
    assert boot(guest(wait), expect="waited", timeout=20).ok


def test_pausing_stops_the_guest_and_resuming_lets_it_go_on():
    count = "again:\ninc dword [600h]\njmp short again"
    with Machine("kvm", [guest(count)], 16 << 20) as machine:
        machine.start()
        assert machine.run(lambda m: m.read_memory(0x600, 4) != bytes(4), timeout=20)
        machine.pause()
        seen = machine.read_memory(0x600, 4)
        assert machine.read_memory(0x600, 4) == seen
        machine.resume()
        assert machine.run(lambda m: m.read_memory(0x600, 4) != seen, timeout=20)


def test_several_processors_run_and_stop():
    with Machine("kvm", [disk_of(hello_disk())], 32 << 20, cpus=3) as machine:
        machine.start()
        assert machine.run(lambda m: "is running" in m.serial_text(), timeout=20)
        assert len(machine.exit_counts()) == 3


def test_the_second_disk_is_drive_81h():
    read = """
    mov ax, 0201h
    mov bx, 8000h
    mov cx, 1
    mov dx, 81h
    int 13h
    mov si, 8000h
    call print
    call stop
"""
    result = boot([guest(read), disk_of(b"from the second disk\0")], expect="from the second disk", timeout=20)
    assert result.ok


def test_a_guest_that_stops_is_told_by_what_it_read_last():
    read = """
    mov ax, 0202h               ; two sectors from number 3 on
    mov bx, 8000h
    mov cx, 3
    mov dx, 80h
    int 13h
    cli
    call stop
"""

    def name_of(disk, offset):
        return "the kernel's file" if disk.read(offset, 4) == b"file" else None

    disk = guest(read)
    disk.data[1024:2048] = b"file" * 256
    result = boot(disk, timeout=30, name_of=name_of)
    assert result.kind == "halted"
    assert result.reason.endswith("; the last reads fell in the kernel's file, and ended at byte 2048")


def test_a_pace_is_measured():
    assert instructions_per_second() > 1e5
    assert slowness() >= 1
