"""`vdisk.boot`: boot a disk in the engine that is there: our own hypervisor, or an installed QEMU."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vdisk.block.device import BlockDevice
from vdisk.errors import HypervisorError, OptionError
from vdisk.hv.boot import BootResult
from vdisk.hv.boot import boot as boot_embedded
from vdisk.hv.config import Disk
from vdisk.hv.kvm import DEVICE, KvmMissing
from vdisk.serve.qemu import PROGRAM, QemuMissing, boot_in_qemu

if TYPE_CHECKING:
    from vdisk.hv.machine import Machine

Engine = Literal["auto", "embedded", "qemu"]
Bootable = str | os.PathLike[str] | BlockDevice | Disk


def boot(
    disks: Bootable | Sequence[Bootable],
    *,
    engine: Engine = "auto",
    write: bool = False,
    firmware: str | os.PathLike[str] | None = None,
    option_rom: str | os.PathLike[str] | None = None,
    on_machine: Callable[[Machine], None] | None = None,
    **options: Any,
) -> BootResult:
    """Boot images (paths) or devices and say how far the system comes; nothing is changed unless `write`.

    `options` are those of `vdisk.hv.boot.boot`: profile, memory_bytes, cpus, kernel, controller, expect, timeout, keys,
    on_serial. "auto" takes our own hypervisor; QEMU where there is no KVM; and QEMU's emulation where the host's KVM
    is one that cannot emulate the guest's instructions. `HypervisorError` if there is neither.
    """
    rows = [disks] if isinstance(disks, str | os.PathLike | BlockDevice | Disk) else list(disks)
    if engine not in ("auto", "embedded", "qemu"):
        raise OptionError(f"engine: there is no {engine!r}; known are auto, embedded, qemu")
    with ExitStack() as stack:
        opened = [row if isinstance(row, BlockDevice | Disk) else _open(row, write, stack) for row in rows]
        firmware_path = os.fspath(firmware) if firmware is not None else None
        if engine == "qemu":
            return boot_in_qemu(opened, firmware_path=firmware_path, write=write, **options)
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
                result = boot_in_qemu(opened, firmware_path=firmware_path, write=write, **options)
            except QemuMissing as missing:
                raise HypervisorError(f"{error}; and {missing}: either is needed to boot an image") from None
            result.notes.append(f"{error}: booted in QEMU")
            return result
        if engine == "auto" and not result.conclusive and not write and shutil.which(PROGRAM):
            reason = result.reason
            result = boot_in_qemu(opened, firmware_path=firmware_path, write=write, emulate=True, **options)
            result.notes.append(f"{DEVICE}: {reason}; so QEMU emulated the processor")
        return result


def _open(path: str | os.PathLike[str], write: bool, stack: ExitStack) -> BlockDevice:
    from vdisk import formats

    return stack.enter_context(formats.open(path, writable=write))


def _read(path: str | os.PathLike[str] | None) -> bytes | None:
    from vdisk.errors import StorageError

    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise StorageError(path, "read", error) from error
