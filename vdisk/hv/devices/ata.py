"""The ATA command core that the IDE and the AHCI controller share (ACS-3).

A controller hands over a `TaskFile`, gets an `Action` that says how the data goes, and moves the data itself.
`begin` may change the task file: what it then holds is what the guest reads back.
"""

from __future__ import annotations

import abc
import struct
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from vdisk.block.device import BlockDevice
from vdisk.errors import VdiskError
from vdisk.hv.devices import dma
from vdisk.hv.devices.dma import SECTOR_BYTES
from vdisk.hv.devices.scsi import MEDIUM_ERROR, ScsiError
from vdisk.hv.devices.transfer import Direction, Transfer

BUSY, READY, SEEK_DONE, DATA_REQUEST, ERROR = 0x80, 0x40, 0x10, 0x08, 0x01
ABORTED, ID_NOT_FOUND, UNCORRECTABLE = 0x04, 0x10, 0x40
LBA_MODE = 0x40
DISK_SIGNATURE, PACKET_SIGNATURE = 0x000001, 0xEB1401
_MULTIPLE_SECTORS = 16
_TRIM_BLOCKS = 8
_NCQ_LOG = 0x10

_READS_PIO, _READS_MULTIPLE, _READS_DMA = (0x20, 0x21, 0x24), (0xC4, 0x29), (0xC8, 0xC9, 0x25)
_WRITES_PIO, _WRITES_MULTIPLE = (0x30, 0x31, 0x34), (0xC5, 0x39, 0xCE)
_WRITES_DMA = (0xCA, 0xCB, 0x35, 0x3D)
_FUA = (0x3D, 0xCE)
_EXTENDED = frozenset((0x24, 0x25, 0x29, 0x34, 0x35, 0x39, 0x3D, 0xCE, 0x42, 0x27))
_TAKEN = frozenset((0x70, 0x91, 0xE0, 0xE1, 0xE2, 0xE3, 0xE6, *range(0x10, 0x20)))
"""Commands without effect on a disk that neither spins nor seeks."""


class Command:
    """Opcodes of commands that are told apart one by one; those that move sectors are in the tuples above."""

    DATA_SET_MANAGEMENT, DEVICE_RESET, READ_NATIVE_MAX_EXT, READ_LOG_EXT = 0x06, 0x08, 0x27, 0x2F
    VERIFY, VERIFY_NO_RETRY, VERIFY_EXT, READ_FPDMA_QUEUED, WRITE_FPDMA_QUEUED = 0x40, 0x41, 0x42, 0x60, 0x61
    DIAGNOSTIC, INITIALIZE_PARAMETERS, PACKET, IDENTIFY_PACKET_DEVICE = 0x90, 0x91, 0xA0, 0xA1
    SET_MULTIPLE, CHECK_POWER, FLUSH, FLUSH_EXT, IDENTIFY_DEVICE = 0xC6, 0xE5, 0xE7, 0xEA, 0xEC
    SET_FEATURES, READ_NATIVE_MAX = 0xEF, 0xF8


class AtaError(Exception):
    """A command ends with the error bit; `bits` is the error register."""

    def __init__(self, bits: int = ABORTED) -> None:
        super().__init__(f"ATA error {bits:#04x}")
        self.bits = bits


class Protocol(Enum):
    """How a command's data goes."""

    NONE = 0
    PIO = 1
    DMA = 2
    QUEUED = 3
    PACKET = 4


@dataclass(slots=True)
class TaskFile:
    """A command as it reaches the drive: `features` and `count` have 16 bits, `lba` has 48."""

    command: int
    features: int = 0
    count: int = 0
    lba: int = 0
    device: int = 0


@dataclass(slots=True)
class Action:
    """What a command wants: `block_bytes` is what goes between two interrupts in programmed I/O."""

    protocol: Protocol
    transfer: Transfer = field(default_factory=Transfer.nothing)
    block_bytes: int = SECTOR_BYTES


class AtaDevice(abc.ABC):
    """A drive on a cable."""

    is_packet: ClassVar[bool] = False
    signature: ClassVar[int]
    """The LBA that tells the kind of drive after a reset."""

    def __init__(self, *, model: str, serial: str, firmware: str, is_sata: bool) -> None:
        self.model, self.serial, self.firmware = model, serial, firmware
        self.is_sata = is_sata
        self.udma_mode = 0
        self.mwdma_mode: int | None = None
        self.reset()

    def reset(self) -> None:
        """What a reset brings back."""
        self.udma_mode = 5 if self.is_sata else 2
        self.mwdma_mode = None

    @abc.abstractmethod
    def begin(self, task: TaskFile) -> Action:
        """Decode a command. Raises `AtaError`."""

    def packet(self, cdb: bytes) -> Transfer:
        """The command behind a PACKET command. Raises `ScsiError`; drives without packets have none."""
        raise AtaError

    def medium_failed(self, direction: Direction) -> ScsiError:
        """The sense of a packet whose data the medium could not give or take."""
        return ScsiError(MEDIUM_ERROR, 0x11)

    def _set_features(self, task: TaskFile) -> Action:
        match task.features & 0xFF:
            case 0x03:
                self._set_transfer_mode(task.count & 0xFF)
            case 0x02 | 0x82 | 0xAA | 0x55 | 0x66 | 0xCC:
                pass
            case _:
                raise AtaError
        return Action(Protocol.NONE)

    def _set_transfer_mode(self, mode: int) -> None:
        match mode >> 3:
            case 0 | 1 if mode & 7 <= 4:  # programmed I/O
                pass
            case 4 if mode & 7 <= 2:
                self.mwdma_mode, self.udma_mode = mode & 7, -1
            case 8 if mode & 7 <= 5:
                self.mwdma_mode, self.udma_mode = None, mode & 7
            case _:
                raise AtaError

    def _identify_common(self) -> list[int]:
        """The identify words that disks and packet devices share; 256 of them."""
        words = [0] * 256
        words[10:20] = _text_words(self.serial, 10)
        words[23:27] = _text_words(self.firmware, 4)
        words[27:47] = _text_words(self.model, 20)
        words[49] = 0x0F00  # IORDY, LBA, DMA
        words[51] = 0x0200
        words[53] = 0x0006
        words[63] = 0x0007 | (0x0100 << self.mwdma_mode if self.mwdma_mode is not None else 0)
        words[64] = 0x0003
        words[65:69] = [120] * 4
        words[80] = 0x01F0
        words[88] = 0x003F | (0x0100 << self.udma_mode if self.udma_mode >= 0 else 0)
        if self.is_sata:
            words[76] = 0x0006  # 1.5 and 3 Gbit/s
        else:
            words[93] = 0x600B  # device 0, 80 wires
        return words

    @staticmethod
    def _identify_data(words: list[int]) -> bytes:
        data = bytearray(struct.pack("<256H", *words))
        data[510] = 0xA5
        data[511] = -sum(data[:511]) & 0xFF
        return bytes(data)


def _text_words(text: str, count: int) -> list[int]:
    """ATA's strings: two characters a word, the first in the upper byte."""
    data = text.encode("ascii", "replace")[: 2 * count].ljust(2 * count)
    return list(struct.unpack(f">{count}H", data))


class AtaDisk(AtaDevice):
    """A hard disk with LBA48, FUA, TRIM and, on SATA, native command queuing."""

    signature = DISK_SIGNATURE

    def __init__(
        self,
        disk: BlockDevice,
        *,
        model: str = "vdisk HARDDISK",
        serial: str = "VD00000001",
        firmware: str = "1.0",
        is_sata: bool = False,
    ) -> None:
        self.disk = disk
        self.sectors = dma.sector_count(disk)
        self.cylinders = max(1, min(self.sectors // (16 * 63), 16383))
        super().__init__(model=model, serial=serial, firmware=firmware, is_sata=is_sata)

    def reset(self) -> None:
        """Geometry and multiple mode go back to what IDENTIFY gives."""
        super().reset()
        self.heads, self.track_sectors = 16, 63
        self.multiple_sectors = _MULTIPLE_SECTORS

    def begin(self, task: TaskFile) -> Action:
        """Decode a command of the general feature set."""
        command = task.command
        if command in _READS_DMA:
            return Action(Protocol.DMA, self._data(task, Direction.IN))
        if command in _WRITES_DMA:
            return Action(Protocol.DMA, self._data(task, Direction.OUT))
        if command in _READS_PIO:
            return Action(Protocol.PIO, self._data(task, Direction.IN))
        if command in _WRITES_PIO:
            return Action(Protocol.PIO, self._data(task, Direction.OUT))
        if command in _READS_MULTIPLE or command in _WRITES_MULTIPLE:
            if not self.multiple_sectors:
                raise AtaError
            direction = Direction.IN if command in _READS_MULTIPLE else Direction.OUT
            block_bytes = self.multiple_sectors * SECTOR_BYTES
            return Action(Protocol.PIO, self._data(task, direction), block_bytes)
        if command in _TAKEN:
            if command == Command.INITIALIZE_PARAMETERS:
                self.heads, self.track_sectors = (task.device & 15) + 1, task.count & 0xFF or 1
            return Action(Protocol.NONE)
        return self._other(task)

    def _other(self, task: TaskFile) -> Action:
        match task.command:
            case Command.READ_FPDMA_QUEUED | Command.WRITE_FPDMA_QUEUED if self.is_sata:
                return Action(Protocol.QUEUED, self._queued(task))
            case Command.FLUSH | Command.FLUSH_EXT:
                self._flush()
            case Command.IDENTIFY_DEVICE:
                return Action(Protocol.PIO, Transfer.answer(self.identify()))
            case Command.SET_FEATURES:
                return self._set_features(task)
            case Command.VERIFY | Command.VERIFY_NO_RETRY | Command.VERIFY_EXT:
                self._range(task)
            case Command.SET_MULTIPLE:
                count = task.count & 0xFF
                if count > _MULTIPLE_SECTORS or count & (count - 1):
                    raise AtaError
                self.multiple_sectors = count
            case Command.CHECK_POWER:
                task.count = task.count & ~0xFF | 0xFF  # active
            case Command.READ_NATIVE_MAX:
                last = min(self.sectors, 1 << 28) - 1
                task.lba, task.device = last & 0xFFFFFF, task.device & 0xF0 | last >> 24 & 15
            case Command.READ_NATIVE_MAX_EXT:
                task.lba = self.sectors - 1
            case Command.DIAGNOSTIC:
                task.count, task.lba = 1, self.signature
            case Command.DATA_SET_MANAGEMENT if task.features & 1 and self.disk.writable:
                length = task.count * SECTOR_BYTES
                if not 0 < task.count <= _TRIM_BLOCKS:
                    raise AtaError
                return Action(Protocol.DMA, Transfer.parameters(length, self._trim))
            case Command.READ_LOG_EXT if self.is_sata:
                return self._read_log(task)
            case _:
                raise AtaError
        return Action(Protocol.NONE)

    # Reading and writing ---------------------------------------------------------------------------------------

    def _range(self, task: TaskFile) -> tuple[int, int]:
        """(first sector, count) of a command in any of the three addressing modes."""
        if task.command in _EXTENDED:
            first, count = task.lba, task.count or 1 << 16
        else:
            count = task.count & 0xFF or 256
            if task.device & LBA_MODE:
                first = task.lba & 0xFFFFFF | (task.device & 15) << 24
            else:
                cylinder, sector = task.lba >> 8 & 0xFFFF, task.lba & 0xFF
                first = (cylinder * self.heads + (task.device & 15)) * self.track_sectors + sector - 1
        if first < 0 or first + count > self.sectors:
            raise AtaError(ID_NOT_FOUND)
        return first, count

    def _data(self, task: TaskFile, direction: Direction) -> Transfer:
        first, count = self._range(task)
        offset, length = first * SECTOR_BYTES, count * SECTOR_BYTES
        if direction is Direction.IN:
            return Transfer.read_disk(self.disk, offset, length)
        if not self.disk.writable:
            raise AtaError
        return Transfer.write_disk(self.disk, offset, length, must_last=task.command in _FUA)

    def _queued(self, task: TaskFile) -> Transfer:
        """NCQ keeps the count in the features, the tag in the count, and FUA in the device register."""
        first, count = task.lba, task.features or 1 << 16
        if first + count > self.sectors:
            raise AtaError(ID_NOT_FOUND)
        offset, length = first * SECTOR_BYTES, count * SECTOR_BYTES
        if task.command == Command.READ_FPDMA_QUEUED:
            return Transfer.read_disk(self.disk, offset, length)
        if not self.disk.writable:
            raise AtaError
        return Transfer.write_disk(self.disk, offset, length, must_last=bool(task.device & 0x80))

    def _flush(self) -> None:
        try:
            self.disk.flush()
        except VdiskError:
            raise AtaError from None

    def _trim(self, data: bytes) -> None:
        """Ranges of 8 bytes: a 48-bit first sector and a 16-bit count; empty ones pad the block."""
        todo = []
        for (entry,) in struct.iter_unpack("<Q", data[: len(data) & ~7]):
            first, count = entry & (1 << 48) - 1, entry >> 48
            if first + count > self.sectors:
                raise AtaError(ID_NOT_FOUND)
            if count:
                todo.append((first, count))
        for first, count in todo:
            self.disk.discard(first * SECTOR_BYTES, count * SECTOR_BYTES)

    # What the disk says of itself ------------------------------------------------------------------------------

    def _read_log(self, task: TaskFile) -> Action:
        """The directory, and the log that a driver reads after an error of a queued command."""
        page, log, count = task.lba >> 8 & 0xFF, task.lba & 0xFF, task.count
        if page or count != 1 or log not in (0, _NCQ_LOG):
            raise AtaError
        data = bytearray(SECTOR_BYTES)
        if log == 0:
            data[0] = 1  # version
            data[2 * _NCQ_LOG] = 1
        else:
            data[:14] = self.queue_error[:14]
            data[511] = -sum(data[:511]) & 0xFF
        return Action(Protocol.PIO, Transfer.answer(bytes(data)))

    queue_error = bytes([0x80] + [0] * 13)
    """The NCQ error log's head; bit 7 of its first byte says that no queued command has failed."""

    def note_queue_error(self, tag: int, status: int, error: int, task: TaskFile) -> None:
        """Keep what the NCQ error log is to say of the command that failed."""
        low, high = task.lba & 0xFFFFFF, task.lba >> 24
        self.queue_error = (
            bytes((tag, 0, status, error))
            + low.to_bytes(3, "little")
            + bytes((task.device,))
            + high.to_bytes(3, "little")
            + bytes((0, task.count & 0xFF, task.count >> 8 & 0xFF))
        )

    def identify(self) -> bytes:
        """The 512 bytes of IDENTIFY DEVICE."""
        words = self._identify_common()
        chs_sectors = min(self.sectors, self.cylinders * 16 * 63)
        words[0] = 0x0040
        words[1], words[3], words[6] = self.cylinders, 16, 63
        words[47] = 0x8000 | _MULTIPLE_SECTORS
        words[50] = 0x4000
        words[53] |= 0x0001
        words[54], words[55], words[56] = self.cylinders, self.heads, self.track_sectors
        words[57], words[58] = chs_sectors & 0xFFFF, chs_sectors >> 16
        words[59] = 0x0100 | self.multiple_sectors if self.multiple_sectors else 0
        lba28 = min(self.sectors, (1 << 28) - 1)
        words[60], words[61] = lba28 & 0xFFFF, lba28 >> 16
        words[82] = words[85] = 0x4068  # NOP, look-ahead, write cache, power management
        words[83] = 0x7400  # FLUSH CACHE, FLUSH CACHE EXT, LBA48
        words[86] = 0x3400
        words[84] = words[87] = 0x4040  # WRITE DMA FUA EXT
        for word in range(4):
            words[100 + word] = self.sectors >> 16 * word & 0xFFFF
        if self.disk.writable:
            words[105], words[169] = _TRIM_BLOCKS, 1
        words[217] = 1  # does not rotate
        if self.is_sata:
            words[75] = 31
            words[76] |= 0x0100
            words[84] |= 0x0020  # general purpose logging, for the NCQ error log
            words[87] |= 0x0020
        return self._identify_data(words)
