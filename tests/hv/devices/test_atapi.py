"""A guest finds a CD drive, reads the disc and learns of errors by sense data."""

from __future__ import annotations

import struct

import pytest

from tests.hv.devices.device_rig import RamDisk
from tests.hv.devices.ide_driver import BUFFER, DRQ, ERR, IdeDriver
from vdisk.hv.devices.ata import AtaDisk
from vdisk.hv.devices.atapi import AtapiDrive, CdDrive

FRAMES = 512


@pytest.fixture
def disc() -> RamDisk:
    return RamDisk(FRAMES * 2048, writable=False).fill()


@pytest.fixture
def driver(disc: RamDisk) -> IdeDriver:
    driver = IdeDriver(AtaDisk(RamDisk()), AtapiDrive(CdDrive(disc, vendor="ACME", product="Reader")))
    driver.unit = 1
    return driver


def sense(driver: IdeDriver) -> tuple[int, int]:
    data = driver.packet_in(bytes([0x03, 0, 0, 0, 18]))
    assert len(data) == 18
    return data[2], data[12]


def fails(driver: IdeDriver, cdb: bytes) -> tuple[int, int]:
    """Send a packet that must fail; returns its sense key and code."""
    driver.packet(cdb)
    assert driver.acknowledge() & (DRQ | ERR) == ERR
    key = driver.error >> 4
    found = sense(driver)
    assert found[0] == key
    return found


def read_10(first: int, count: int) -> bytes:
    return struct.pack(">BxIxHx", 0x28, first, count)


def test_identify_device_is_aborted_with_the_packet_signature(driver: IdeDriver) -> None:
    driver.command(0xEC)
    assert driver.acknowledge() & ERR
    assert (driver.get(4), driver.get(5)) == (0x14, 0xEB)
    driver.command(0xA1)
    words = struct.unpack("<256H", driver.pio_in(1))
    assert words[0] == 0x85C0
    assert words[49] & 0x100


def test_a_reset_shows_the_packet_signature(driver: IdeDriver) -> None:
    for command in (None, 0x08):
        if command is None:
            driver.channel.control_block.write(0, 1, 4)
            driver.channel.control_block.write(0, 1, 0)
            driver.set(6, 0xB0)
        else:
            driver.command(command)
        assert [driver.get(register) for register in (2, 3, 4, 5)] == [1, 1, 0x14, 0xEB]


def test_inquiry_names_a_removable_cd_drive(driver: IdeDriver) -> None:
    data = driver.packet_in(bytes([0x12, 0, 0, 0, 36]))
    assert data[:2] == b"\x05\x80"
    assert data[8:32] == b"ACME    Reader          "
    assert driver.packet_in(bytes([0x12, 0, 0, 0, 5])) == data[:5]


def test_the_disc_is_read_by_programmed_io_in_the_blocks_asked_for(driver: IdeDriver, disc: RamDisk) -> None:
    assert driver.packet_in(bytes([0x25])) == struct.pack(">II", FRAMES - 1, 2048)
    assert driver.packet_in(read_10(3, 2)) == disc.sectors(12, 8)
    assert driver.packet_in(read_10(0, 5), byte_count=3000) == disc.sectors(0, 20)
    assert driver.packet_in(struct.pack(">BxII2x", 0xA8, 100, 100)) == disc.sectors(400, 400)
    assert driver.packet_in(read_10(0, 0)) == b""


def test_the_disc_is_read_by_dma(driver: IdeDriver, disc: RamDisk) -> None:
    driver.prepare_dma([(BUFFER, 0), (BUFFER + 65536, 4096)])
    driver.packet(read_10(7, 34), dma=True)
    assert driver.run_dma(to_memory=True) & 7 == 4
    assert driver.acknowledge() & (DRQ | ERR) == 0
    assert driver.get(2) & 3 == 3
    assert driver.memory.read(BUFFER, 34 * 2048) == disc.sectors(28, 136)


def test_read_cd_gives_user_data_only(driver: IdeDriver, disc: RamDisk) -> None:
    assert driver.packet_in(bytes([0xBE, 0, 0, 0, 0, 2, 0, 0, 1, 0x10])) == disc.sectors(8, 4)
    assert fails(driver, bytes([0xBE, 0, 0, 0, 0, 2, 0, 0, 1, 0xF8])) == (5, 0x64)


def test_errors_are_told_by_sense(driver: IdeDriver, disc: RamDisk) -> None:
    assert fails(driver, read_10(FRAMES, 1)) == (5, 0x21)
    assert fails(driver, bytes([0x2A])) == (5, 0x20)
    assert fails(driver, bytes([0x12, 1, 0xC0, 0, 255])) == (5, 0x24)
    assert sense(driver) == (0, 0)
    disc.fails = True
    assert fails(driver, read_10(0, 1)) == (3, 0x11)
    disc.fails = False
    assert driver.packet_in(bytes([0x00])) == b""


def test_an_empty_tray_is_not_ready() -> None:
    driver = IdeDriver(AtapiDrive(CdDrive(None)))
    for cdb in (bytes([0x00]), bytes([0x25]), read_10(0, 1), bytes([0x43, 0, 0, 0, 0, 0, 0, 0, 12])):
        assert fails(driver, cdb) == (2, 0x3A)
    event = driver.packet_in(bytes([0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8]))
    assert event[5] == 0
    assert driver.packet_in(bytes([0x46, 0, 0, 0, 0, 0, 0, 0, 8]))[6:8] == b"\0\0"


def test_the_table_of_contents_has_one_data_track(driver: IdeDriver) -> None:
    toc = driver.packet_in(bytes([0x43, 0, 0, 0, 0, 0, 0, 0, 100, 0]))
    assert toc == struct.pack(">HBBBBBBIBBBBI", 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0x14, 0xAA, 0, FRAMES)
    in_minutes = driver.packet_in(bytes([0x43, 2, 0, 0, 0, 0, 0xAA, 0, 100, 0]))
    assert in_minutes[8:12] == bytes([0, 0, (FRAMES + 150) // 75, (FRAMES + 150) % 75])
    sessions = driver.packet_in(bytes([0x43, 0, 0, 0, 0, 0, 0, 0, 100, 0x40]))
    assert sessions[:4] == b"\x00\x0a\x01\x01"
    assert len(driver.packet_in(bytes([0x43, 2, 2, 0, 0, 0, 0, 0, 100, 0]))) == 4 + 4 * 11


def test_status_pages_keep_their_announced_lengths(driver: IdeDriver) -> None:
    configuration = driver.packet_in(bytes([0x46, 0, 0, 0, 0, 0, 0, 1, 0, 0]))
    assert int.from_bytes(configuration[:4], "big") == len(configuration) - 4
    assert configuration[6:8] == b"\x00\x08"
    event = driver.packet_in(bytes([0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8]))
    assert event == bytes([0, 6, 4, 0x10, 0, 2, 0, 0])
    for opcode in (0x51, 0x52):
        data = driver.packet_in(bytes([opcode, 0, 0, 0, 0, 0, 0, 1, 0]))
        assert int.from_bytes(data[:2], "big") == len(data) - 2
    modes = driver.packet_in(bytes([0x5A, 0, 0x3F, 0, 0, 0, 0, 1, 0]))
    assert int.from_bytes(modes[:2], "big") == len(modes) - 2
    capabilities = driver.packet_in(bytes([0x5A, 0, 0x2A, 0, 0, 0, 0, 1, 0]))[8:]
    assert capabilities[0] == 0x2A
    assert capabilities[1] == len(capabilities) - 2
    assert driver.packet_in(bytes([0x1E, 0, 0, 0, 1])) == b""


def test_a_dvd_is_told_by_its_size() -> None:
    disc = RamDisk(2048, writable=False)
    disc.size = 1 << 30
    driver = IdeDriver(AtapiDrive(CdDrive(disc)))
    assert driver.packet_in(bytes([0x46, 0, 0, 0, 0, 0, 0, 0, 8]))[6:8] == b"\x00\x10"
