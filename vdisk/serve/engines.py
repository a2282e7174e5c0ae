"""`vdisk.boot`: boot a disk in the engine that is there: our own hypervisor, or an installed QEMU."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vdisk.block.device import BlockDevice
from vdisk.errors import HypervisorError, OptionError, VdiskError
from vdisk.hv.boot import BootResult
from vdisk.hv.boot import boot as boot_embedded
from vdisk.hv.config import Disk
from vdisk.hv.kvm import DEVICE, KvmMissing
from vdisk.hv.pace import slowness
from vdisk.inspect.loaders import boots_by_uefi_only
from vdisk.inspect.places import Places
from vdisk.serve.qemu import PROGRAM, QemuMissing, boot_in_qemu

if TYPE_CHECKING:
    from vdisk.hv.machine import Machine

UEFI_FIRMWARE = ("/usr/share/ovmf/OVMF.fd", "/usr/share/qemu/OVMF.fd", "/usr/share/edk2/x64/OVMF.4m.fd")
"""Firmware for UEFI in one file, where Debian, SUSE and Arch put it."""

Engine = Literal["auto", "embedded", "qemu"]
Bootable = str | os.PathLike[str] | BlockDevice | Disk


def boot(
    disks: Bootable | Sequence[Bootable],
    *,
    engine: Engine = "auto",
    write: bool = False,
    force_share: bool = False,
    firmware: str | os.PathLike[str] | None = None,
    option_rom: str | os.PathLike[str] | None = None,
    on_machine: Callable[[Machine], None] | None = None,
    **options: Any,
) -> BootResult:
    """Boot images (paths) or devices and say how far the system comes; nothing is changed unless `write`.

    `force_share` opens paths all the same that another program writes to.

    `options` are those of `vdisk.hv.boot.boot`: profile, memory_bytes, cpus, kernel, controller, expect, timeout, keys,
    on_serial. "auto" takes our own hypervisor; QEMU where there is no KVM; and QEMU's emulation where the host's KVM
    is one that cannot emulate the guest's instructions, or too slow. `HypervisorError` if there is neither. A disk that
    boots by UEFI only goes to QEMU too, where that and a firmware for it (`UEFI_FIRMWARE`) are installed.
    """
    options.setdefault("name_of", Places().name_of)
    rows = [disks] if isinstance(disks, str | os.PathLike | BlockDevice | Disk) else list(disks)
    if engine not in ("auto", "embedded", "qemu"):
        raise OptionError(f"engine: there is no {engine!r}; known are auto, embedded, qemu")

    def in_qemu() -> dict[str, Any]:
        return {"write": write, "emulate": _is_kvm_slow()}

    with ExitStack() as stack:
        opened = [row if isinstance(row, BlockDevice | Disk) else _open(row, write, force_share, stack) for row in rows]
        firmware_path = os.fspath(firmware) if firmware is not None else None
        is_uefi = firmware is None and options.get("kernel") is None and _is_for_uefi(opened)
        uefi_firmware = next((path for path in UEFI_FIRMWARE if Path(path).is_file()), None)
        if is_uefi and engine != "embedded" and uefi_firmware is not None and shutil.which(PROGRAM):
            result = boot_in_qemu(opened, firmware_path=uefi_firmware, **in_qemu(), **options)
            result.notes.append(f"the disk boots by UEFI only: QEMU booted it with {uefi_firmware}")
            return result
        if engine == "qemu":
            return boot_in_qemu(opened, firmware_path=firmware_path, **in_qemu(), **options)
        try:
            result = boot_embedded(
                opened,
                firmware=_read(firmware),
                option_rom=_read(option_rom),
                write=write,
                on_machine=on_machine,
                **options,
            )
        except KvmMissing as error:
            if engine == "embedded":
                raise
            try:
                result = boot_in_qemu(opened, firmware_path=firmware_path, **in_qemu(), **options)
            except QemuMissing as missing:
                raise HypervisorError(f"{error}; and {missing}: either is needed to boot an image") from None
            result.notes.append(f"{error}: booted in QEMU")
            return result
        if is_uefi:
            result.notes.append(
                f"the disk boots by UEFI only: that needs {PROGRAM} and {UEFI_FIRMWARE[0]} (package ovmf)"
            )
        if engine == "auto" and not result.conclusive and not write and shutil.which(PROGRAM):
            reason = result.reason
            result = boot_in_qemu(opened, firmware_path=firmware_path, write=write, emulate=True, **options)
            result.notes.append(f"{DEVICE}: {reason}; so QEMU emulated the processor")
        return result


def _is_for_uefi(disks: Sequence[BlockDevice | Disk]) -> bool:
    """Whether the first disk boots by UEFI only; one that cannot be read will say so when it is booted."""
    if not disks:
        return False
    first = disks[0].device if isinstance(disks[0], Disk) else disks[0]
    try:
        return boots_by_uefi_only(first)
    except VdiskError:
        return False


def _is_kvm_slow() -> bool:
    """Whether QEMU does better without the host's KVM. With an emulated one QEMU has failed to start at all."""
    try:
        return slowness() > 1
    except KvmMissing:
        return False


def _open(path: str | os.PathLike[str], write: bool, force_share: bool, stack: ExitStack) -> BlockDevice:
    from vdisk import formats

    return stack.enter_context(formats.open(path, writable=write, force_share=force_share))


def _read(path: str | os.PathLike[str] | None) -> bytes | None:
    from vdisk.errors import StorageError

    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise StorageError(path, "read", error) from error
