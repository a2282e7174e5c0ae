"""A guest finds a hard disk on an IDE channel and moves its sectors by programmed I/O and by bus-master DMA."""

from __future__ import annotations

import struct

import pytest

from tests.hv.devices.device_rig import Line, RamDisk
from tests.hv.devices.ide_driver import BSY, BUFFER, DRDY, DRQ, ERR, PRD_TABLE, IdeDriver
from vdisk.hv.devices.ata import AtaDisk
from vdisk.hv.devices.ide import IdeChannel

READ, READ_EXT, READ_DMA, READ_DMA_EXT, READ_MULTIPLE = 0x20, 0x24, 0xC8, 0x25, 0xC4
WRITE, WRITE_EXT, WRITE_DMA, WRITE_DMA_EXT, WRITE_FUA_EXT, WRITE_MULTIPLE = 0x30, 0x34, 0xCA, 0x35, 0x3D, 0xC5


@pytest.fixture
def disk() -> RamDisk:
    return RamDisk(4 << 20).fill()


@pytest.fixture
def driver(disk: RamDisk) -> IdeDriver:
    return IdeDriver(AtaDisk(disk, model="A disk", serial="S1", firmware="9"))


def identify(driver: IdeDriver) -> tuple[int, ...]:
    driver.command(0xEC)
    data = driver.pio_in(1)
    assert sum(data) & 0xFF == 0
    assert data[510] == 0xA5
    return struct.unpack("<256H", data)


def test_identify_describes_the_disk(driver: IdeDriver, disk: RamDisk) -> None:
    words = identify(driver)
    text = struct.pack(">40H", *words[10:50])
    assert text[:20].rstrip() == b"S1"
    assert text[26:34].rstrip() == b"9"
    assert text[34:74].rstrip() == b"A disk"
    assert words[60] | words[61] << 16 == disk.size // 512
    assert words[100] | words[101] << 16 == disk.size // 512
    assert words[83] & 0x2400 == 0x2400
    assert words[49] & 0x300 == 0x300
    assert words[75] == 0


def test_an_absent_slave_is_not_there_and_an_empty_cable_floats(driver: IdeDriver) -> None:
    driver.unit = 1
    driver.command(0xEC)
    assert driver.status == driver.get(7) == driver.get(3) == 0
    assert not driver.irq.level
    empty = IdeChannel(Line(), [])
    empty.write(3, 1, 0x55)
    assert empty.read(3, 1) == empty.read(7, 1) == empty.control_block.read(0, 1) == 0xFF


def test_a_soft_reset_shows_the_signature(driver: IdeDriver) -> None:
    driver.command(READ, 3, 4)
    driver.channel.control_block.write(0, 1, 4)
    assert driver.status == BSY
    driver.channel.control_block.write(0, 1, 0)
    assert driver.status & (BSY | DRDY | DRQ) == DRDY
    assert [driver.get(register) for register in (1, 2, 3, 4, 5)] == [1, 1, 1, 0, 0]
    assert not driver.irq.level
    driver.set(7, 0x90)
    assert not driver.acknowledge() & ERR
    assert driver.error == 1


def test_sectors_come_by_programmed_io(driver: IdeDriver, disk: RamDisk) -> None:
    driver.command(READ, 9, 3)
    assert driver.pio_in(3) == disk.sectors(9, 3)
    driver.command(READ, 0, 0)  # 256 sectors
    assert driver.pio_in(256) == disk.sectors(0, 256)
    driver.command(READ_EXT, 100, 300, ext=True)
    assert driver.pio_in(300) == disk.sectors(100, 300)
    assert not driver.irq.level


def test_the_data_port_has_two_widths(driver: IdeDriver, disk: RamDisk) -> None:
    driver.command(READ, 5, 1)
    data = b"".join(driver.channel.read(0, 4).to_bytes(4, "little") for _ in range(64))
    data += b"".join(driver.channel.read(0, 2).to_bytes(2, "little") for _ in range(128))
    assert data == disk.sectors(5, 1)
    assert driver.channel.read(0, 2) == 0xFFFF


def test_one_string_instruction_may_span_blocks(driver: IdeDriver, disk: RamDisk) -> None:
    driver.command(READ, 5, 4)
    assert driver.read_data(1024) + driver.read_data(1024) == disk.sectors(5, 4)


def test_multiple_mode_moves_several_sectors_an_interrupt(driver: IdeDriver, disk: RamDisk) -> None:
    driver.command(0xC6, count=8)
    driver.acknowledge()
    assert identify(driver)[59] == 0x108
    before = driver.irq.rises
    driver.command(READ_MULTIPLE, 10, 20)
    data = b""
    for size in (8, 8, 4):
        driver.acknowledge()
        data += driver.read_data(size * 512)
    assert data == disk.sectors(10, 20)
    assert driver.irq.rises - before == 3
    driver.command(WRITE_MULTIPLE, 50, 16)
    assert driver.pio_out(b"m" * 8192, 4096) & (DRQ | ERR) == 0
    assert disk.sectors(50, 16) == b"m" * 8192
    driver.command(0xC6, count=7)
    assert driver.acknowledge() & ERR
    driver.command(0xC6, count=0)
    driver.acknowledge()
    driver.command(READ_MULTIPLE, 10, 1)
    assert driver.acknowledge() & ERR


def test_sectors_go_by_programmed_io(driver: IdeDriver, disk: RamDisk) -> None:
    data = bytes(range(256)) * 6
    driver.command(WRITE, 20, 3)
    assert driver.pio_out(data) & (DRQ | ERR) == 0
    driver.command(WRITE_EXT, 4000, 3, ext=True)
    assert driver.pio_out(data) & (DRQ | ERR) == 0
    assert disk.sectors(20, 3) == disk.sectors(4000, 3) == data
    driver.command(0xE7)
    driver.acknowledge()
    assert disk.flushes == 1


def test_cylinders_heads_and_sectors_address_too(driver: IdeDriver, disk: RamDisk) -> None:
    driver.set(6, 0xA0 | 3)
    for register, value in ((2, 1), (3, 5), (4, 2), (5, 0)):
        driver.set(register, value)
    driver.set(7, READ)
    assert driver.pio_in(1) == disk.sectors((2 * 16 + 3) * 63 + 4, 1)


@pytest.mark.parametrize("pieces", [[(BUFFER, 8192)], [(BUFFER, 4096), (0x40000, 2048), (0x30000, 2048)]])
def test_dma_reads_into_scattered_memory(driver: IdeDriver, disk: RamDisk, pieces: list[tuple[int, int]]) -> None:
    driver.prepare_dma(pieces)
    driver.command(READ_DMA, 33, 16)
    assert not driver.irq.level
    assert driver.run_dma(to_memory=True) & 7 == 4
    assert driver.acknowledge() & (DRQ | ERR) == 0
    assert b"".join(driver.memory.read(*piece) for piece in pieces) == disk.sectors(33, 16)
    assert driver.piix.is_live


def test_dma_may_be_started_before_the_command(driver: IdeDriver, disk: RamDisk) -> None:
    driver.prepare_dma([(BUFFER, 0)])  # 64 KiB
    driver.bus_master.write(0, 1, 9)
    assert driver.bus_master.read(2, 1) & 7 == 1
    driver.command(READ_DMA_EXT, 1, 128, ext=True)
    assert driver.bus_master.read(2, 1) & 7 == 4
    driver.acknowledge()
    assert driver.memory.read(BUFFER, 65536) == disk.sectors(1, 128)


def test_dma_writes_and_honours_fua(driver: IdeDriver, disk: RamDisk) -> None:
    driver.memory.write(BUFFER, b"d" * 1024)
    driver.prepare_dma([(BUFFER, 1024)])
    driver.command(WRITE_DMA, 70, 2)
    assert driver.run_dma(to_memory=False) & 7 == 4
    driver.acknowledge()
    assert disk.sectors(70, 2) == b"d" * 1024
    assert disk.flushes == 0
    driver.prepare_dma([(BUFFER, 1024)])
    driver.command(WRITE_FUA_EXT, 80, 2, ext=True)
    driver.run_dma(to_memory=False)
    driver.acknowledge()
    assert disk.sectors(80, 2) == b"d" * 1024
    assert disk.flushes == 1


def test_a_larger_table_stays_active_and_a_smaller_one_is_an_error(driver: IdeDriver, disk: RamDisk) -> None:
    driver.prepare_dma([(BUFFER, 512), (BUFFER + 512, 512), (BUFFER + 1024, 512)])
    driver.command(READ_DMA, 0, 1)
    assert driver.run_dma(to_memory=True) & 7 == 5
    assert not driver.acknowledge() & ERR
    driver.prepare_dma([(BUFFER, 512)])
    driver.command(READ_DMA, 0, 2)
    assert driver.run_dma(to_memory=True) & 1 == 0
    assert driver.acknowledge() & ERR


def test_bad_tables_end_in_an_error(driver: IdeDriver, disk: RamDisk) -> None:
    before = bytes(disk.data)
    for address, pieces in [
        (PRD_TABLE, [(0xFFFF0000, 512)]),
        (0xFFFFFFF0, [(BUFFER, 512)]),
    ]:
        driver.prepare_dma(pieces)
        driver.bus_master.write(4, 4, address)
        driver.command(WRITE_DMA, 0, 1)
        assert driver.run_dma(to_memory=False) & 3 == 2
        assert driver.acknowledge() & ERR
    driver.prepare_dma([(BUFFER, 512)])
    driver.command(READ_DMA, 0, 1)
    assert driver.run_dma(to_memory=False) & 3 == 2  # the wrong way round
    assert driver.acknowledge() & ERR
    assert bytes(disk.data) == before


def test_trim_discards_the_listed_ranges(driver: IdeDriver, disk: RamDisk) -> None:
    assert identify(driver)[169] == 1
    entries = struct.pack("<QQ", 8 << 48 | 64, 1 << 48 | 200).ljust(512, b"\0")
    driver.memory.write(BUFFER, entries)
    driver.prepare_dma([(BUFFER, 512)])
    driver.command(0x06, 0, 1, features=1, ext=True)
    driver.run_dma(to_memory=False)
    assert not driver.acknowledge() & ERR
    assert disk.discards == [(64 * 512, 4096), (200 * 512, 512)]
    driver.memory.write(BUFFER, struct.pack("<Q", 8 << 48 | 8190).ljust(512, b"\0"))
    driver.prepare_dma([(BUFFER, 512)])
    driver.command(0x06, 0, 1, features=1, ext=True)
    driver.run_dma(to_memory=False)
    assert driver.acknowledge() & ERR
    assert len(disk.discards) == 2


@pytest.mark.parametrize("command", [READ, WRITE, READ_DMA, WRITE_DMA, 0x40])
def test_a_range_beyond_the_end_is_not_found(driver: IdeDriver, command: int) -> None:
    driver.command(command, 8191, 2)
    assert driver.acknowledge() & (DRQ | ERR) == ERR
    assert driver.error == 0x10
    driver.command(READ_EXT, 1 << 40, 1, ext=True)
    assert driver.acknowledge() & ERR
    driver.command(READ, 8191, 1)
    driver.pio_in(1)


@pytest.mark.parametrize("command", [0x00, 0x60, 0xA1, 0xA0, 0x08, 0xB0, 0xF1, 0x2F])
def test_commands_it_does_not_have_are_aborted(driver: IdeDriver, command: int) -> None:
    driver.command(command)
    assert driver.acknowledge() & (DRQ | ERR) == ERR
    assert driver.error == 0x04


def test_a_failing_disk_is_reported(driver: IdeDriver, disk: RamDisk) -> None:
    disk.fails = True
    driver.command(READ, 0, 1)
    assert driver.acknowledge() & ERR
    assert driver.error == 0x40
    driver.command(WRITE, 0, 2)
    driver.write_data(bytes(512))
    assert driver.acknowledge() & (DRQ | ERR) == ERR
    driver.prepare_dma([(BUFFER, 512)])
    driver.command(READ_DMA, 0, 1)
    driver.run_dma(to_memory=True)
    assert driver.acknowledge() & ERR
    disk.fails = False
    driver.command(READ, 0, 1)
    assert driver.pio_in(1) == disk.sectors(0, 1)


def test_a_read_only_disk_aborts_writes() -> None:
    disk = RamDisk(writable=False).fill()
    driver = IdeDriver(None, AtaDisk(disk))
    driver.unit = 1
    driver.command(WRITE, 0, 1)
    assert driver.acknowledge() & (DRQ | ERR) == ERR
    driver.command(READ, 1, 1)
    assert driver.pio_in(1) == disk.sectors(1, 1)


def test_set_features_and_the_transfer_mode(driver: IdeDriver) -> None:
    for features, count, is_taken in ((3, 0x42, True), (2, 0, True), (3, 0x4F, False), (0x99, 0, False)):
        driver.command(0xEF, 0, count, features=features)
        assert bool(driver.acknowledge() & ERR) != is_taken
    assert identify(driver)[88] == 0x043F
    driver.command(0xEF, 0, 0x22, features=3)
    driver.acknowledge()
    words = identify(driver)
    assert (words[63], words[88]) == (0x0407, 0x003F)


def test_native_capacity_and_power_mode(driver: IdeDriver) -> None:
    driver.command(0xF8)
    driver.acknowledge()
    assert driver.get(3) | driver.get(4) << 8 | driver.get(5) << 16 == 8191
    driver.command(0xE5)
    driver.acknowledge()
    assert driver.get(2) == 0xFF


def test_interrupts_can_be_held_back(driver: IdeDriver) -> None:
    driver.channel.control_block.write(0, 1, 2)
    driver.command(READ, 0, 1)
    assert not driver.irq.level
    assert driver.status & DRQ
    driver.channel.control_block.write(0, 1, 0)
    assert driver.irq.level


def test_previous_values_are_read_through_the_control_bit(driver: IdeDriver) -> None:
    driver.set(3, 0x12)
    driver.set(3, 0x34)
    driver.channel.control_block.write(0, 1, 0x80)
    assert driver.get(3) == 0x12
    driver.channel.control_block.write(0, 1, 0)
    assert driver.get(3) == 0x34


def test_a_command_ends_the_one_before(driver: IdeDriver, disk: RamDisk) -> None:
    driver.command(READ, 0, 8)
    driver.read_data(100)
    driver.command(WRITE, 1, 2)
    driver.write_data(bytes(600))
    driver.command(READ, 7, 1)
    assert driver.pio_in(1) == disk.sectors(7, 1)


def test_the_function_looks_like_a_piix(driver: IdeDriver) -> None:
    assert driver.rig.config(1, 0) == 0x70108086
    assert driver.rig.config(1, 8) >> 8 == 0x010180
    assert driver.rig.config(1, 0x40) == 0x80008000
    assert driver.rig.config(1, 0x20) & 0xF == 1
    driver.prepare_dma([(BUFFER, 512)])
    driver.rig.host.reset()
    assert driver.bus_master.read(4, 4) == 0
    assert driver.rig.config(1, 0x40) == 0x80008000


def test_no_sequence_of_writes_breaks_the_channel(driver: IdeDriver) -> None:
    state = 12345
    for _ in range(20000):
        state = state * 1103515245 + 12345 & 0x7FFFFFFF
        register, value, size = state >> 8 & 7, state >> 12 & 0xFF, (1, 2, 4)[state >> 21 & 1 or 0]
        match state >> 24 & 7:
            case 0:
                driver.channel.control_block.write(0, 1, value & 0x82)
            case 1:
                driver.bus_master.write(register, 1, value)
            case 2:
                driver.channel.read(register, size)
            case 3:
                driver.channel.write_block(0, 2, bytes(value * 2))
            case 4:
                driver.channel.read_block(0, 2, value)
            case _:
                driver.channel.write(register, 1, value)
    driver.piix.reset()
    driver.command(READ, 0, 1)
    driver.pio_in(1)
