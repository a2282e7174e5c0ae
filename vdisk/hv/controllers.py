"""Which controller a machine's disks hang on, and what the firmware calls them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vdisk.errors import OptionError
from vdisk.hv.config import Disk
from vdisk.hv.devices.virtio.blk import VirtioBlock
from vdisk.hv.devices.virtio.pci import VirtioPci
from vdisk.hv.devices.virtio.rng import VirtioEntropy
from vdisk.hv.firmware.disks import FIRST_CD, FIRST_DISK, Drive

if TYPE_CHECKING:
    from vdisk.hv.board import Board

_FIRST_FREE_SLOT = 4
_FLOPPIES_MOST = 2


@dataclass(slots=True)
class Attached:
    """What hangs where."""

    drives: list[Drive] = field(default_factory=list)
    """For int 13h, in the order to boot from."""
    drivers_live: list[tuple[str, Callable[[], bool]]] = field(default_factory=list)
    """For each controller its name, and whether a driver of the guest runs it."""


def attach_disks(board: Board, bridge_slot: int) -> Attached:
    """Plug in the controllers that the disks ask for, each with its disks, and number the drives."""
    attached = Attached()
    slot = _FIRST_FREE_SLOT
    numbers = {"disk": FIRST_DISK, "cdrom": FIRST_CD, "floppy": 0}
    for index, disk in enumerate(board.config.disks):
        number = numbers[disk.kind]
        numbers[disk.kind] += 1
        if disk.kind == "floppy" and number >= _FLOPPIES_MOST:
            raise OptionError("disks: a PC has no more than two floppy drives")
        attached.drives.append(Drive(number, disk.kind, disk.device))
        controller = disk.controller or board.config.profile.controller
        if disk.kind == "disk" and controller == "virtio-blk":
            slot = _plug_virtio_block(board, attached, slot, disk, index)
    board.pci.plug(slot, VirtioPci(VirtioEntropy(board.memory)))
    return attached


def _plug_virtio_block(board: Board, attached: Attached, slot: int, disk: Disk, index: int) -> int:
    device = VirtioBlock(board.memory, disk.device, serial=f"{board.config.serial_number}-{index}")
    function = VirtioPci(device)
    board.pci.plug(slot, function)
    attached.drivers_live.append(("virtio-blk", lambda: function.is_live))
    return slot + 1
