"""Which engine boots a disk, and that QEMU is judged like our own."""

import shutil
from pathlib import Path

import pytest

from samples.make_samples import hello_disk
from tests import peers
from tests.compat.disks import efi_disk, mbr_disk
from tests.hv.guests import boot_sector, disk_of, needs_kvm
from tests.serve.uefi_program import GREETING, uefi_program
from vdisk import formats
from vdisk.errors import HypervisorError, InUse, OptionError
from vdisk.hv.config import Kernel
from vdisk.hv.kvm import KvmMissing
from vdisk.hv.signs import Stage
from vdisk.serve import engines, qemu
from vdisk.serve.engines import boot


@pytest.fixture
def no_kvm(monkeypatch):
    def refuse(*_args, **_options):
        raise KvmMissing("/dev/kvm: there is none")

    monkeypatch.setattr(engines, "boot_embedded", refuse)


@pytest.mark.kvm
@needs_kvm
def test_a_path_boots_in_our_own_engine(tmp_path):
    (tmp_path / "hello.raw").write_bytes(hello_disk())
    result = boot(tmp_path / "hello.raw", expect="is running", timeout=20)
    assert result.ok
    assert result.engine == "embedded"


@pytest.mark.kvm
@needs_kvm
def test_an_image_that_is_written_to_boots_only_where_that_is_asked_for(tmp_path):
    path = tmp_path / "hello.raw"
    path.write_bytes(hello_disk())
    with formats.open(path, writable=True):
        with pytest.raises(InUse):
            boot(path, expect="is running", timeout=20)
        assert boot(path, force_share=True, expect="is running", timeout=20).ok


@pytest.mark.peer
@pytest.mark.parametrize("controller", ["virtio-blk", "ide", "ahci"])
def test_without_kvm_qemu_boots_it(no_kvm, controller):
    peers.require("qemu-system-x86_64")
    disk = disk_of(hello_disk())
    before = bytes(disk.data)
    result = boot(disk, controller=controller, expect="is running", timeout=60, memory_bytes=64 << 20)
    assert result.ok, result.reason
    assert result.engine == "qemu"
    assert result.stage >= Stage.BOOT_SECTOR
    assert bytes(disk.data) == before


@pytest.mark.peer
def test_where_qemu_cannot_use_kvm_it_emulates(monkeypatch, tmp_path):
    """QEMU 7.2 takes some nested KVMs and then ends by an assertion."""
    real = peers.require("qemu-system-x86_64")
    fake = tmp_path / "qemu-system-x86_64"
    fake.write_text(f'#!/bin/sh\ncase "$*" in *"-accel kvm"*) echo Assertion >&2; exit 134;; esac\nexec {real} "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(qemu, "PROGRAM", str(fake))
    result = qemu.boot_in_qemu(disk_of(hello_disk()), expect="is running", timeout=60, memory_bytes=64 << 20)
    assert result.ok, result.reason


@pytest.mark.peer
def test_qemu_types_keys():
    peers.require("qemu-system-x86_64")
    echo = """
    mov si, text
    call print
again:
    xor ax, ax
    int 16h
    mov dx, 3F8h
    out dx, al
    jmp short again
text: db "ready", 0
"""
    result = boot(disk_of(boot_sector(echo)), engine="qemu", keys="<expect ready>Hi!", expect="readyHi!", timeout=60)
    assert result.ok, result.reason


@pytest.mark.peer
def test_qemu_starts_a_kernel_beside_a_disk():
    peers.require("qemu-system-x86_64")
    image = peers.require_file(Path("/boot/memtest86+x64.bin"), "memtest86+").read_bytes()
    kernel = Kernel(image, b"", "console=ttyS0,115200")
    result = boot(disk_of(hello_disk()), engine="qemu", kernel=kernel, timeout=3)
    assert result.stage >= Stage.PROTECTED_MODE  # the sample on the disk stays in real mode


def test_with_neither_engine_the_message_says_what_to_install(no_kvm, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(HypervisorError, match="qemu-system-x86"):
        boot(disk_of(hello_disk()))


def test_an_unknown_engine_is_refused():
    with pytest.raises(OptionError):
        boot(disk_of(hello_disk()), engine="bochs")


@pytest.mark.peer
@pytest.mark.slow
def test_a_disk_that_boots_by_uefi_only_boots_in_qemu(tmp_path):
    peers.require("qemu-system-x86_64")
    peers.require_file(engines.UEFI_FIRMWARE[0], "ovmf")
    disk = efi_disk(tmp_path / "efi.raw", program=uefi_program())
    result = boot(disk, expect=GREETING, controller="ide", timeout=120)
    assert result.ok, result.reason
    assert result.engine == "qemu"
    assert any("UEFI only" in note for note in result.notes)


@pytest.mark.kvm
@needs_kvm
def test_without_a_firmware_for_uefi_the_verdict_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "UEFI_FIRMWARE", ("/nowhere/OVMF.fd",))
    result = boot(efi_disk(tmp_path / "efi.raw"), timeout=20)
    assert (result.kind, result.engine) == ("nothing to boot", "embedded")
    assert "no boot code in sector 0" in result.reason
    assert any("UEFI only" in note and "/nowhere/OVMF.fd" in note for note in result.notes)


@pytest.mark.kvm
@needs_kvm
def test_what_a_silent_guest_read_last_has_its_place_on_the_disk(tmp_path):
    # Reads the second sector, as a boot sector does that looks for its loader, and halts.
    read = "mov ax, 0201h\nmov bx, 8000h\nmov cx, 2\nmov dx, 80h\nint 13h\ncli\ncall stop\n"
    disk = mbr_disk(tmp_path / "disk.raw", 0x83, b"", code=boot_sector(read)[:440], active=True)
    result = boot(disk, timeout=30)
    assert result.kind == "halted"
    assert "then in the gap before partition 1, and ended at byte 1024" in result.reason
