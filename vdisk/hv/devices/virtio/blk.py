"""virtio-blk (Virtual I/O Device 1.2, 5.2): a disk with flush, discard and write zeroes."""

from __future__ import annotations

import struct

from vdisk.block.device import BlockDevice
from vdisk.errors import VdiskError
from vdisk.hv.devices import dma
from vdisk.hv.devices.base import DmaMemory
from vdisk.hv.devices.dma import SECTOR_BYTES, Range
from vdisk.hv.devices.virtio.device import VirtioDevice
from vdisk.hv.devices.virtio.ring import Chain, RingError, VirtQueue

F_SEG_MAX, F_GEOMETRY, F_RO, F_BLK_SIZE, F_FLUSH, F_DISCARD, F_WRITE_ZEROES = (1 << n for n in (2, 4, 5, 6, 9, 13, 14))
IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = b"\x00", b"\x01", b"\x02"
QUEUE_ENTRIES = 256
_SEGMENTS = QUEUE_ENTRIES - 2
_LARGEST_DISCARD_SECTORS = 0x3FFFFF
_ID_BYTES = 20
_HEADER = struct.Struct("<IIQ")
_RANGE = struct.Struct("<QII")
_RANGES_A_REQUEST = 32
_UNMAP = 1

_unpack_header = _HEADER.unpack_from


class VirtioBlock(VirtioDevice):
    """A disk. `serial` is what /dev/disk/by-id shows, at most 20 bytes."""

    type_id = 2
    class_code = 0x010000
    queue_sizes = (QUEUE_ENTRIES,)

    def __init__(self, memory: DmaMemory, disk: BlockDevice, *, serial: str = "") -> None:
        super().__init__(memory)
        self.disk = disk
        self.features = F_SEG_MAX | F_GEOMETRY | F_BLK_SIZE | F_FLUSH
        self.features |= F_DISCARD | F_WRITE_ZEROES if disk.writable else F_RO
        self._serial = serial.encode("ascii", "replace")[:_ID_BYTES].ljust(_ID_BYTES, b"\0")
        self._sectors = dma.sector_count(disk)
        self._config = self._make_config()

    def _make_config(self) -> bytes:
        cylinders = min(self._sectors // (16 * 63), 16383)
        block_sectors = max(self.disk.block_size // SECTOR_BYTES, 1)
        return struct.pack(
            "<QIIHBBI8xBxHIIIIIB3x",
            self._sectors,
            0,
            _SEGMENTS,
            cylinders,
            16,
            63,
            SECTOR_BYTES,
            1,  # write-back: a driver without FLUSH is served by a flush after each write
            1,
            _LARGEST_DISCARD_SECTORS,
            _RANGES_A_REQUEST,
            block_sectors if block_sectors < 1 << 16 else 8,
            _LARGEST_DISCARD_SECTORS,
            _RANGES_A_REQUEST,
            1,
        )

    def config(self) -> bytes:
        """struct virtio_blk_config."""
        return self._config

    def handle(self, queue: VirtQueue, chain: Chain) -> int:
        """Do one request: header, data, status byte."""
        _head, readable, writable = chain
        memory = self.memory
        if not readable or not writable:
            raise RingError("a block request without a header or a status")
        address, length = writable[-1]
        if length == 1:
            status = memory.view(address, 1)
            writable.pop()
        elif length:
            status = memory.view(address + length - 1, 1)
            writable[-1] = (address, length - 1)
        else:
            raise RingError("a block request with an empty status")
        address, length = readable[0]
        if length == 16:
            kind, _priority, sector = _unpack_header(memory.view(address, 16))
            del readable[0]
        else:
            kind, sector = self._split_header(readable)
        try:
            if kind == IN:
                pieces = dma.views(memory, writable)
                count = dma.total_bytes(pieces)
                if count % SECTOR_BYTES or sector + count // SECTOR_BYTES > self._sectors:
                    status[:] = IOERR
                    return 1
                dma.disk_to_memory(self.disk, sector * SECTOR_BYTES, pieces)
                status[:] = OK
                return count + 1
            status[:], written = self._other(kind, sector, readable, writable)
            return written + 1
        except VdiskError:
            status[:] = IOERR
            return 1

    def _split_header(self, readable: list[Range]) -> tuple[int, int]:
        """A header that does not have a descriptor of its own (any layout); leaves the data in `readable`."""
        header = b""
        while len(header) < 16:
            if not readable:
                raise RingError("a block request with a short header")
            address, length = readable[0]
            part = self.memory.read(address, min(length, 16 - len(header)))
            header += part
            if len(part) == length:
                del readable[0]
            else:
                readable[0] = (address + len(part), length - len(part))
        kind, _priority, sector = _unpack_header(header)
        return kind, sector

    def _other(self, kind: int, sector: int, readable: list[Range], writable: list[Range]) -> tuple[bytes, int]:
        """Everything but a read: (status, bytes written to memory)."""
        disk = self.disk
        if kind == OUT:
            pieces = dma.views(self.memory, readable)
            count = dma.total_bytes(pieces)
            if count % SECTOR_BYTES or sector + count // SECTOR_BYTES > self._sectors:
                return IOERR, 0
            dma.memory_to_disk(disk, sector * SECTOR_BYTES, pieces)
            if not self.negotiated & F_FLUSH:
                disk.flush()
            return OK, 0
        if kind == FLUSH:
            disk.flush()
            return OK, 0
        if kind == GET_ID:
            return OK, dma.scatter(self._serial, dma.views(self.memory, writable))
        if kind in (DISCARD, WRITE_ZEROES) and disk.writable:
            return self._ranges(kind, dma.views(self.memory, readable)), 0
        return UNSUPP, 0

    def _ranges(self, kind: int, pieces: list[memoryview]) -> bytes:
        length = dma.total_bytes(pieces)
        if not length or length % _RANGE.size or length > _RANGE.size * _RANGES_A_REQUEST:
            return IOERR
        todo = list(_RANGE.iter_unpack(dma.gather(pieces)))
        for sector, count, flags in todo:
            if count > _LARGEST_DISCARD_SECTORS or sector + count > self._sectors:
                return IOERR
            if flags & ~_UNMAP or (kind == DISCARD and flags):
                return UNSUPP
        for sector, count, flags in todo:
            if kind == DISCARD:
                self.disk.discard(sector * SECTOR_BYTES, count * SECTOR_BYTES)
            else:
                unmap = bool(flags & _UNMAP)
                self.disk.write_zeroes(sector * SECTOR_BYTES, count * SECTOR_BYTES, unmap=unmap)
        return OK
