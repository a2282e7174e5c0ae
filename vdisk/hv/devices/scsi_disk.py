"""A SCSI disk: the block commands (SBC-3) over a BlockDevice."""

from __future__ import annotations

import struct

from vdisk.block.device import BlockDevice
from vdisk.errors import VdiskError
from vdisk.hv.devices import dma
from vdisk.hv.devices.dma import SECTOR_BYTES
from vdisk.hv.devices.scsi import (
    ScsiTarget,
    invalid_field,
    invalid_opcode,
    invalid_parameter,
    out_of_range,
    write_protected,
)
from vdisk.hv.devices.transfer import Direction, Transfer

READ_6, WRITE_6, READ_CAPACITY_10, READ_10, WRITE_10, VERIFY_10 = 0x08, 0x0A, 0x25, 0x28, 0x2A, 0x2F
SYNCHRONIZE_CACHE_10, WRITE_SAME_10, UNMAP, READ_16, WRITE_16 = 0x35, 0x41, 0x42, 0x88, 0x8A
SYNCHRONIZE_CACHE_16, WRITE_SAME_16, SERVICE_ACTION_IN, READ_12, WRITE_12 = 0x91, 0x93, 0x9E, 0xA8, 0xAA
RESERVE_6, RELEASE_6, VERIFY_16 = 0x16, 0x17, 0x8F
_READ_CAPACITY_16 = 0x10
_LONGEST_BLOCKS = 0xFFFF
_LONGEST_UNMAP_BLOCKS = 1 << 22
_UNMAP_RANGES = 64
_FUA, _UNMAP_BIT, _NO_DATA = 0x08, 0x08, 0x01
_HEADS, _TRACK_SECTORS = 255, 63


class ScsiDisk(ScsiTarget):
    """Logical unit 0 as a direct-access block device with 512-byte blocks and thin provisioning."""

    device_type = 0

    def __init__(
        self,
        disk: BlockDevice,
        *,
        vendor: str = "VDISK",
        product: str = "Virtual disk",
        revision: str = "1.0",
        serial: str = "0",
    ) -> None:
        super().__init__(vendor=vendor, product=product, revision=revision, serial=serial)
        self.disk = disk
        self.blocks = dma.sector_count(disk)
        self._handlers |= {
            READ_CAPACITY_10: self._read_capacity_10,
            SERVICE_ACTION_IN: self._service_action_in,
            SYNCHRONIZE_CACHE_10: self._synchronize,
            SYNCHRONIZE_CACHE_16: self._synchronize,
            VERIFY_10: self._verify,
            VERIFY_16: self._verify,
            UNMAP: self._unmap,
            WRITE_SAME_10: self._write_same,
            WRITE_SAME_16: self._write_same,
            RESERVE_6: self._accept,
            RELEASE_6: self._accept,
        }
        self._handlers |= dict.fromkeys((READ_6, READ_10, READ_12, READ_16), self._read)
        self._handlers |= dict.fromkeys((WRITE_6, WRITE_10, WRITE_12, WRITE_16), self._write)

    # Reading and writing ---------------------------------------------------------------------------------------

    @staticmethod
    def _range(cdb: bytes) -> tuple[int, int]:
        """(first block, count) of a command of any length."""
        match cdb[0] >> 5:
            case 0:
                return int.from_bytes(cdb[1:4], "big") & 0x1FFFFF, cdb[4] or 256
            case 1 | 2:
                first, count = struct.unpack_from(">IxH", cdb, 2)
            case 5:
                first, count = struct.unpack_from(">II", cdb, 2)
            case _:
                first, count = struct.unpack_from(">QI", cdb, 2)
        return first, count

    def _checked_range(self, cdb: bytes) -> tuple[int, int]:
        """(offset, length) in bytes of a range that lies on the disk."""
        first, count = self._range(cdb)
        if first + count > self.blocks:
            raise out_of_range()
        return first * SECTOR_BYTES, count * SECTOR_BYTES

    def _read(self, cdb: bytes) -> Transfer:
        offset, length = self._checked_range(cdb)
        if length > _LONGEST_BLOCKS * SECTOR_BYTES:
            raise invalid_field()
        return Transfer.read_disk(self.disk, offset, length)

    def _write(self, cdb: bytes) -> Transfer:
        if not self.disk.writable:
            raise write_protected()
        offset, length = self._checked_range(cdb)
        if length > _LONGEST_BLOCKS * SECTOR_BYTES:
            raise invalid_field()
        must_last = cdb[0] != WRITE_6 and bool(cdb[1] & _FUA)
        return Transfer.write_disk(self.disk, offset, length, must_last=must_last)

    def _synchronize(self, cdb: bytes) -> Transfer:
        try:
            self.disk.flush()
        except VdiskError:
            raise self.failed(Direction.OUT) from None
        return Transfer.nothing()

    def _verify(self, cdb: bytes) -> Transfer:
        if cdb[1] & 0x06:
            raise invalid_field()  # comparing with the guest's data is not offered
        self._checked_range(cdb)
        return Transfer.nothing()

    # Zeroing and discarding ------------------------------------------------------------------------------------

    def _unmap(self, cdb: bytes) -> Transfer:
        if not self.disk.writable:
            raise write_protected()
        length = cdb[7] << 8 | cdb[8]
        return Transfer.parameters(length, self._unmap_ranges) if length else Transfer.nothing()

    def _unmap_ranges(self, data: bytes) -> None:
        if len(data) < 8:
            raise invalid_parameter()
        listed = int.from_bytes(data[2:4], "big")
        ranges = data[8 : 8 + listed]
        if listed % 16 or len(ranges) != listed or listed > 16 * _UNMAP_RANGES:
            raise invalid_parameter()
        todo = [(first, count) for first, count in struct.iter_unpack(">QI4x", ranges) if count]
        if any(first + count > self.blocks for first, count in todo):
            raise out_of_range()
        for first, count in todo:
            self.disk.discard(first * SECTOR_BYTES, count * SECTOR_BYTES)

    def _write_same(self, cdb: bytes) -> Transfer:
        if not self.disk.writable:
            raise write_protected()
        first, count = self._range(cdb)
        if first + count > self.blocks:
            raise out_of_range()
        count = count or self.blocks - first
        if count > _LONGEST_UNMAP_BLOCKS:
            raise invalid_field()
        offset, length, unmap = first * SECTOR_BYTES, count * SECTOR_BYTES, bool(cdb[1] & _UNMAP_BIT)

        def fill(data: bytes) -> None:
            if len(data) < SECTOR_BYTES:
                raise invalid_parameter()
            if not any(data[:SECTOR_BYTES]):
                self.disk.write_zeroes(offset, length, unmap=unmap)
                return
            step = 128 * data[:SECTOR_BYTES]
            for at in range(0, length, len(step)):
                self.disk.write(offset + at, step[: length - at])

        if cdb[0] == WRITE_SAME_16 and cdb[1] & _NO_DATA:
            try:
                self.disk.write_zeroes(offset, length, unmap=unmap)
            except VdiskError:
                raise self.failed(Direction.OUT) from None
            return Transfer.nothing()
        return Transfer.parameters(SECTOR_BYTES, fill)

    # What the disk is ------------------------------------------------------------------------------------------

    def _read_capacity_10(self, cdb: bytes) -> Transfer:
        last = min(max(self.blocks - 1, 0), 0xFFFFFFFF)
        return Transfer.answer(struct.pack(">II", last, SECTOR_BYTES))

    def _service_action_in(self, cdb: bytes) -> Transfer:
        if cdb[1] & 0x1F != _READ_CAPACITY_16:
            raise invalid_opcode() if cdb[1] & 0x1F == 0 else invalid_field()
        provisioning = 0x80 if self.disk.writable else 0
        answer = struct.pack(">QIBBB17x", max(self.blocks - 1, 0), SECTOR_BYTES, 0, 0, provisioning)
        return self.allocated(answer, int.from_bytes(cdb[10:14], "big"))

    def vital_pages(self) -> tuple[int, ...]:
        """Block limits, characteristics and provisioning come on top."""
        return (*super().vital_pages(), 0xB0, 0xB1, 0xB2)

    def vital_page(self, page: int) -> bytes | None:
        """The pages of SBC-3."""
        match page:
            case 0xB0:
                granularity = max(self.disk.block_size // SECTOR_BYTES, 1)
                unmap = (_LONGEST_UNMAP_BLOCKS, _UNMAP_RANGES) if self.disk.writable else (0, 0)
                same = _LONGEST_UNMAP_BLOCKS if self.disk.writable else 0
                return struct.pack(
                    ">BBHIIIIIIIQ20x", 0, 0, 1, _LONGEST_BLOCKS, 128, 0, *unmap, granularity, 0x80000000, same
                )
            case 0xB1:
                return struct.pack(">H58x", 1)  # does not rotate
            case 0xB2:
                offers = 0xE0 if self.disk.writable else 0  # UNMAP, WRITE SAME (16) and (10)
                return bytes((0, offers, 0x02 if self.disk.writable else 0, 0))
        return super().vital_page(page)

    def mode_parameter(self) -> int:
        """FUA is honoured; write protection follows the image."""
        return 0x10 if self.disk.writable else 0x90

    def block_descriptor(self) -> bytes:
        """Count and length of the blocks."""
        return struct.pack(">II", min(self.blocks, 0xFFFFFFFF), SECTOR_BYTES)

    def mode_pages(self) -> dict[int, bytes]:
        """Format, geometry, caching (write cache on) and control."""
        cylinders = min(self.blocks // (_HEADS * _TRACK_SECTORS), 0xFFFFFF)
        tracks = struct.pack(">BB8xHHHHHB3x", 0x03, 22, _TRACK_SECTORS, SECTOR_BYTES, 1, 0, 0, 0x40)
        geometry = b"\x04\x16" + cylinders.to_bytes(3, "big") + bytes((_HEADS,)) + bytes(18)
        return {
            0x03: tracks,
            0x04: geometry,
            0x08: b"\x08\x12\x04" + bytes(17),
            0x0A: b"\x0a\x0a\x02\x10" + bytes(8),
        }
