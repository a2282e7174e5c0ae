"""The SCSI disk's commands, as a guest's sd driver sends them."""

from __future__ import annotations

import struct

import pytest

from tests.hv.devices.device_rig import RamDisk
from vdisk.hv.devices.scsi_disk import ScsiDisk


class Unit:
    """A disk and a buffer for its commands."""

    def __init__(self, disk: RamDisk) -> None:
        self.target = ScsiDisk(disk, vendor="ACME", product="Disk", revision="2", serial="S7")

    def run(self, cdb: bytes, data: bytes | int = 0) -> tuple[bytes, bytes]:
        """(what came back, sense); `data` is sent, or its length expected."""
        buffer = bytearray(data)
        result = self.target.execute(cdb, 0, [memoryview(buffer)] if buffer else [])
        assert (result.status == 2) == bool(result.sense)
        return bytes(buffer[: result.transferred]), result.sense

    def ok(self, cdb: bytes, data: bytes | int = 0) -> bytes:
        back, sense = self.run(cdb, data)
        assert not sense
        return back

    def fails(self, cdb: bytes, data: bytes | int = 0) -> tuple[int, int]:
        """(sense key, additional code)."""
        _, sense = self.run(cdb, data)
        assert len(sense) == 18
        return sense[2], sense[12]


@pytest.fixture
def disk() -> RamDisk:
    return RamDisk().fill()


@pytest.fixture
def unit(disk: RamDisk) -> Unit:
    return Unit(disk)


def test_reads_of_every_length_of_command(unit: Unit, disk: RamDisk) -> None:
    for cdb in (
        bytes([0x08, 0, 0, 9, 2, 0]),
        struct.pack(">BxIxHx", 0x28, 9, 2),
        struct.pack(">BxII2x", 0xA8, 9, 2),
        struct.pack(">BxQI2x", 0x88, 9, 2),
    ):
        assert unit.ok(cdb, 1024) == disk.sectors(9, 2)
    assert unit.ok(bytes([0x08, 0, 0, 0, 0, 0]), 131072) == disk.sectors(0, 256)
    assert unit.ok(struct.pack(">BxIxHx", 0x28, 9, 0)) == b""


def test_writes_of_every_length_of_command(unit: Unit, disk: RamDisk) -> None:
    commands = [
        bytes([0x0A, 0, 0, 1, 1, 0]),
        struct.pack(">BxIxHx", 0x2A, 2, 1),
        struct.pack(">BxII2x", 0xAA, 3, 1),
        struct.pack(">BxQI2x", 0x8A, 4, 1),
    ]
    for number, cdb in enumerate(commands):
        unit.ok(cdb, bytes([number + 65]) * 512)
    assert disk.sectors(1, 4) == b"".join(letter * 512 for letter in (b"A", b"B", b"C", b"D"))
    assert disk.flushes == 0
    unit.ok(struct.pack(">BBIxHx", 0x2A, 8, 2, 1), bytes(512))
    assert disk.flushes == 1
    unit.ok(bytes([0x35] + [0] * 9))
    unit.ok(bytes([0x91] + [0] * 15))
    assert disk.flushes == 3


def test_the_capacity(unit: Unit, disk: RamDisk) -> None:
    assert unit.ok(bytes([0x25] + [0] * 9), 8) == struct.pack(">II", 2047, 512)
    long = unit.ok(struct.pack(">BB8xI2x", 0x9E, 0x10, 32), 32)
    assert struct.unpack(">QI", long[:12]) == (2047, 512)
    assert long[14] == 0x80
    huge = RamDisk()
    huge.size = 4 << 40
    assert Unit(huge).ok(bytes([0x25] + [0] * 9), 8) == struct.pack(">II", 0xFFFFFFFF, 512)


def test_vital_product_data_has_the_lengths_it_says(unit: Unit) -> None:
    def page(number: int) -> bytes:
        data = unit.ok(bytes([0x12, 1, number, 1, 0, 0]), 256)
        assert data[1] == number
        assert len(data) == 4 + int.from_bytes(data[2:4], "big")
        return data[4:]

    pages = page(0)
    assert pages == bytes(sorted(pages))
    for number in pages:
        page(number)
    assert page(0x80) == b"S7"
    assert page(0x83)[4:] == b"ACME    S7"
    limits = page(0xB0)
    assert len(limits) == 60
    assert len(page(0xB1)) == 60
    assert page(0xB2)[1] == 0xE0
    assert unit.fails(bytes([0x12, 1, 0x99, 1, 0, 0])) == (5, 0x24)
    assert unit.fails(bytes([0x12, 0, 0x80, 1, 0, 0])) == (5, 0x24)


def test_mode_sense_shows_the_write_cache_and_protection(unit: Unit) -> None:
    data = unit.ok(bytes([0x1A, 8, 8, 0, 255, 0]), 255)
    assert data[0] == len(data) - 1
    assert data[2] == 0x10
    assert data[4:7] == b"\x08\x12\x04"
    whole = unit.ok(bytes([0x5A, 0, 0x3F, 0, 0, 0, 0, 1, 0, 0]), 256)
    assert int.from_bytes(whole[:2], "big") == len(whole) - 2
    assert int.from_bytes(whole[6:8], "big") == 8
    at, seen = 16, []
    while at < len(whole):
        seen.append(whole[at])
        at += 2 + whole[at + 1]
    assert (at, seen) == (len(whole), [3, 4, 8, 10])
    assert unit.ok(bytes([0x1A, 8, 0x48, 0, 255, 0]), 255)[6] == 0
    assert unit.fails(bytes([0x1A, 0, 0x55, 0, 255, 0])) == (5, 0x24)
    assert unit.fails(bytes([0x1A, 0, 0xC8, 0, 255, 0])) == (5, 0x39)
    locked = Unit(RamDisk(writable=False))
    assert locked.ok(bytes([0x1A, 8, 8, 0, 255, 0]), 255)[2] == 0x90


def test_unmap(unit: Unit, disk: RamDisk) -> None:
    def parameters(*ranges: tuple[int, int]) -> bytes:
        body = b"".join(struct.pack(">QI4x", *r) for r in ranges)
        return struct.pack(">HH4x", len(body) + 6, len(body)) + body

    def unmap(data: bytes) -> tuple[bytes, bytes]:
        return bytes([0x42, 0, 0, 0, 0, 0, 0, *len(data).to_bytes(2, "big"), 0]), data

    unit.ok(*unmap(parameters((8, 8), (64, 0), (64, 16))))
    assert disk.discards == [(4096, 4096), (32768, 8192)]
    assert unit.fails(*unmap(parameters((8, 8), (2040, 16)))) == (5, 0x21)
    assert unit.fails(*unmap(parameters((8, 8))[:20])) == (5, 0x26)
    assert unit.fails(*unmap(b"abc")) == (5, 0x26)
    assert len(disk.discards) == 2


def test_write_same(unit: Unit, disk: RamDisk) -> None:
    unit.ok(struct.pack(">BBIxHx", 0x41, 0, 10, 300), b"s" * 512)
    assert disk.sectors(10, 300) == b"s" * 512 * 300
    assert disk.sectors(310, 1) != b"s" * 512
    unit.ok(struct.pack(">BBQI2x", 0x93, 8, 16, 8), bytes(512))
    unit.ok(struct.pack(">BBQI2x", 0x93, 1, 32, 8))
    assert disk.zeroed == [(8192, 4096, True), (16384, 4096, False)]
    unit.ok(struct.pack(">BBQI2x", 0x93, 1, 2000, 0))
    assert disk.zeroed[-1] == (1024000, 48 * 512, False)
    assert unit.fails(struct.pack(">BBQI2x", 0x93, 0, 2047, 2), bytes(512)) == (5, 0x21)
    assert unit.fails(struct.pack(">BBQI2x", 0x93, 0, 0, 2), bytes(100)) == (5, 0x26)


@pytest.mark.parametrize(
    ("cdb", "sense"),
    [
        (struct.pack(">BxIxHx", 0x28, 2047, 2), (5, 0x21)),
        (struct.pack(">BxQI2x", 0x88, 1 << 60, 1), (5, 0x21)),
        (bytes([0xF0]), (5, 0x20)),
        (b"", (5, 0x20)),
        (bytes([0x9E, 0x0F] + [0] * 14), (5, 0x24)),
        (bytes([0x2F, 2] + [0] * 8), (5, 0x24)),
    ],
)
def test_what_is_wrong_is_told_by_sense(unit: Unit, cdb: bytes, sense: tuple[int, int]) -> None:
    assert unit.fails(cdb, 512) == sense
    again = unit.ok(bytes([3, 0, 0, 0, 18, 0]), 18)
    assert (again[2], again[12]) == sense
    assert unit.ok(bytes([3, 0, 0, 0, 18, 0]), 18)[2] == 0


def test_a_read_only_disk_is_write_protected() -> None:
    unit = Unit(RamDisk(writable=False).fill())
    for cdb in (
        struct.pack(">BxIxHx", 0x2A, 0, 1),
        struct.pack(">BBQI2x", 0x93, 0, 0, 8),
        bytes([0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]),
    ):
        assert unit.fails(cdb, bytes(512)) == (7, 0x27)
    assert unit.ok(struct.pack(">BB8xI2x", 0x9E, 0x10, 32), 32)[14] == 0


def test_a_failing_disk_is_a_medium_error(unit: Unit, disk: RamDisk) -> None:
    disk.fails = True
    assert unit.fails(struct.pack(">BxIxHx", 0x28, 0, 1), 512) == (3, 0x11)
    assert unit.fails(struct.pack(">BxIxHx", 0x2A, 0, 1), bytes(512)) == (3, 0x0C)


def test_there_is_only_unit_zero(disk: RamDisk) -> None:
    target = ScsiDisk(disk)
    buffer = memoryview(bytearray(16))
    assert target.execute(bytes([0xA0] + [0] * 8 + [16, 0, 0]), 0, [buffer]).transferred == 16
    assert bytes(buffer) == struct.pack(">IIQ", 8, 0, 0)
    assert target.execute(bytes(6), 1, []).sense[12] == 0x25
