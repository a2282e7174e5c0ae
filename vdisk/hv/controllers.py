"""Which controller a machine's disks hang on, and what the firmware calls them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from vdisk.errors import OptionError
from vdisk.hv import layout
from vdisk.hv.config import Disk
from vdisk.hv.devices.ahci import ICH9_AHCI, AhciController
from vdisk.hv.devices.ata import AtaDevice, AtaDisk
from vdisk.hv.devices.atapi import AtapiDrive, CdDrive
from vdisk.hv.devices.ide import IdeChannel
from vdisk.hv.devices.lsi53c1030 import Lsi53c1030
from vdisk.hv.devices.nvme import VDISK_NVME, NvmeController
from vdisk.hv.devices.pci import PciFunction
from vdisk.hv.devices.piix_ide import PIIX3_IDE, PIIX4_IDE, PiixIde
from vdisk.hv.devices.pvscsi import Pvscsi
from vdisk.hv.devices.scsi_disk import ScsiDisk
from vdisk.hv.devices.virtio.blk import VirtioBlock
from vdisk.hv.devices.virtio.pci import VirtioPci
from vdisk.hv.devices.virtio.rng import VirtioEntropy
from vdisk.hv.firmware.disks import FIRST_CD, FIRST_DISK, Drive
from vdisk.hv.profiles import CONTROLLERS, Controller

if TYPE_CHECKING:
    from vdisk.hv.board import Board

_FIRST_FREE_SLOT = 4
_FLOPPIES_MOST = 2
_IDE_DRIVES = 4
_SCSI_DISKS = 7
_IDE_ORDER = {"disk": (0, 1, 2, 3), "cdrom": (2, 3, 1, 0)}


@dataclass(slots=True)
class Attached:
    """What hangs where."""

    drives: list[Drive] = field(default_factory=list)
    """For int 13h, in the order to boot from."""
    drivers_live: list[tuple[str, Callable[[], bool]]] = field(default_factory=list)
    """For each controller its name, and whether a driver of the guest runs it."""


class _Slots:
    """Free slots of the PCI bus, in order."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._next = _FIRST_FREE_SLOT

    def plug(self, function: PciFunction) -> None:
        """Into the next free one."""
        while (self._next, 0) in self._board.pci.functions:
            self._next += 1
        self._board.pci.plug(self._next, function)


def attach_disks(board: Board, bridge_slot: int) -> Attached:
    """Plug in the controllers that the disks ask for, each with its disks, and number the drives.

    A CD hangs on AHCI where the disks do, on IDE otherwise. A floppy is there for int 13h alone.
    """
    attached = Attached()
    numbers = {"disk": FIRST_DISK, "cdrom": FIRST_CD, "floppy": 0}
    by_controller: dict[Controller, list[Disk]] = {name: [] for name in CONTROLLERS}
    for disk in board.config.disks:
        number = numbers[disk.kind]
        numbers[disk.kind] += 1
        if disk.kind == "floppy" and number >= _FLOPPIES_MOST:
            raise OptionError("disks: a PC has no more than two floppy drives")
        attached.drives.append(Drive(number, disk.kind, disk.device))
        controller = disk.controller or board.config.profile.controller
        if disk.kind == "cdrom" and controller != "ahci":
            controller = "ide"
        if disk.kind != "floppy":
            by_controller[controller].append(disk)
    slots = _Slots(board)
    if by_controller["ide"]:
        _plug_ide(board, attached, bridge_slot, by_controller["ide"])
    if by_controller["ahci"]:
        _plug_ahci(board, attached, slots, by_controller["ahci"])
    for index, disk in enumerate(by_controller["virtio-blk"]):
        device = VirtioBlock(board.memory, disk.device, serial=f"{board.config.serial_number}-{index}")
        block = VirtioPci(device)
        slots.plug(block)
        attached.drivers_live.append(("virtio-blk", partial(_is_live, block)))
    if by_controller["lsi"]:
        slots.plug(_scsi(Lsi53c1030, board, attached, "lsi", by_controller["lsi"]))
    if by_controller["pvscsi"]:
        slots.plug(_scsi(Pvscsi, board, attached, "pvscsi", by_controller["pvscsi"]))
    for index, disk in enumerate(by_controller["nvme"]):
        nvme = NvmeController(
            board.memory,
            disk.device,
            ids=board.config.profile.controller_ids.get("nvme", VDISK_NVME),
            serial=f"{board.config.serial_number}-{index}".upper(),
        )
        slots.plug(nvme)
        attached.drivers_live.append(("nvme", partial(_is_live, nvme)))
    if board.config.profile.controller == "virtio-blk":
        slots.plug(VirtioPci(VirtioEntropy(board.memory)))
    return attached


class _Runnable(Protocol):
    @property
    def is_live(self) -> bool: ...


def _is_live(function: _Runnable) -> bool:
    return function.is_live


def _scsi(
    kind: type[Lsi53c1030] | type[Pvscsi], board: Board, attached: Attached, name: Controller, disks: list[Disk]
) -> Lsi53c1030 | Pvscsi:
    """A SCSI controller with its disks at ids 0, 1, ..."""
    if len(disks) > _SCSI_DISKS:
        raise OptionError(f"disks: {_SCSI_DISKS} are all that a SCSI bus takes")
    serial = board.config.serial_number
    targets = [
        ScsiDisk(disk.device, vendor="VMware", product="Virtual disk", serial=f"{serial}-{index}")
        for index, disk in enumerate(disks)
    ]
    function = kind(board.memory, targets)
    attached.drivers_live.append((name, partial(_is_live, function)))
    return function


def _ata_device(board: Board, disk: Disk, index: int, *, is_sata: bool) -> AtaDevice:
    if disk.kind == "cdrom":
        return AtapiDrive(CdDrive(disk.device), is_sata=is_sata)
    serial = f"{board.config.serial_number}-{index}".upper()
    return AtaDisk(disk.device, model=board.config.profile.disk_model, serial=serial, is_sata=is_sata)


def _plug_ide(board: Board, attached: Attached, bridge_slot: int, disks: list[Disk]) -> None:
    """The PIIX's function 1: disks from the primary channel's master on, discs from the secondary's."""
    places: list[AtaDevice | None] = [None] * _IDE_DRIVES
    for index, disk in enumerate(disks):
        order = _IDE_ORDER[disk.kind]
        place = next((place for place in order if places[place] is None), None)
        if place is None:
            raise OptionError(f"disks: {_IDE_DRIVES} drives are all that IDE takes")
        places[place] = _ata_device(board, disk, index, is_sata=False)
    channels = [
        IdeChannel(board.irq_line(layout.PRIMARY_IDE_IRQ), places[:2]),
        IdeChannel(board.irq_line(layout.SECONDARY_IDE_IRQ), places[2:]),
    ]
    bases = ((layout.PRIMARY_IDE, layout.PRIMARY_IDE_CONTROL), (layout.SECONDARY_IDE, layout.SECONDARY_IDE_CONTROL))
    for channel, (command, control) in zip(channels, bases, strict=True):
        board.bus.add_ports(command, 8, channel.command_block)
        board.bus.add_ports(control, 1, channel.control_block)
    profile = board.config.profile
    usual = PIIX3_IDE if profile.chipset == "i440fx" else PIIX4_IDE
    _, device_id = profile.controller_ids.get("ide", (0, usual))
    function = PiixIde(board.memory, channels, device_id=device_id, subsystem=profile.subsystem)
    board.pci.plug(bridge_slot, function, 1)
    attached.drivers_live.append(("ide", partial(_is_live, function)))


def _plug_ahci(board: Board, attached: Attached, slots: _Slots, disks: list[Disk]) -> None:
    profile = board.config.profile
    drives = [_ata_device(board, disk, index, is_sata=True) for index, disk in enumerate(disks)]
    ids = profile.controller_ids.get("ahci", ICH9_AHCI)
    function = AhciController(board.memory, drives, ids=ids, subsystem=profile.subsystem)
    slots.plug(function)
    attached.drivers_live.append(("ahci", partial(_is_live, function)))
