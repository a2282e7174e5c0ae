"""int 13h, called as a boot loader calls it."""

import struct

import pytest

from tests.hv.devices.device_rig import RamDisk
from vdisk.hv.firmware.disks import DiskServices, Drive, Geometry, guess_geometry
from vdisk.hv.firmware.frame import Frame
from vdisk.hv.kvm import Regs, Sregs
from vdisk.hv.memory import GuestMemory

STACK = 0x7000
BUFFER = 0x8000
PACKET = 0x600


class Bios:
    """The services over two disks and a disc, and a caller with DS = ES = SS = 0."""

    def __init__(self):
        self.memory = GuestMemory(4 << 20)
        self.disk = RamDisk(8 << 20).fill()
        self.protected = RamDisk(1 << 20, writable=False)
        self.disc = RamDisk(1 << 20).fill()
        drives = [Drive(0x80, "disk", self.disk), Drive(0x81, "disk", self.protected), Drive(0xE0, "cdrom", self.disc)]
        self.services = DiskServices(self.memory, drives)

    def call(self, **registers):
        frame = Frame(Regs(rsp=STACK), Sregs(), self.memory)
        for name, value in registers.items():
            setattr(frame, name, value)
        self.services.handle(frame)
        return frame

    def packet(self, block, count, *, offset=BUFFER, segment=0, size=16, flat=0):
        self.memory.write(PACKET, struct.pack("<BBHHHQQ", size, 0, count, offset, segment, block, flat))


@pytest.fixture
def bios():
    return Bios()


def test_a_sector_by_cylinder_head_and_sector(bios):
    frame = bios.call(ax=0x0202, bx=BUFFER, cx=0x0001 | 3 << 8, dx=0x0580)
    assert not frame.carry
    assert frame.ah == 0
    block = (3 * 16 + 5) * 63
    assert bios.memory.read(BUFFER, 1024) == bios.disk.sectors(block, 2)


@pytest.mark.parametrize(
    "wrong", [{"cx": 0x0000}, {"cx": 0x0040 | 0x3F}, {"dx": 0x1080}, {"ax": 0x0200}, {"cx": 0xFFC1}, {"dx": 0x0082}]
)
def test_what_is_not_on_the_disk_fails(bios, wrong):
    frame = bios.call(**{"ax": 0x0201, "bx": BUFFER, "cx": 0x0001, "dx": 0x0080, **wrong})
    assert frame.carry
    assert frame.ah != 0
    assert frame.al == 0 or "dx" in wrong


def test_a_packet_reads_by_block_number(bios):
    bios.packet(1000, 3)
    frame = bios.call(ah=0x42, dl=0x80, si=PACKET)
    assert not frame.carry
    assert bios.memory.read(BUFFER, 1536) == bios.disk.sectors(1000, 3)


def test_a_packet_with_a_flat_address_reaches_beyond_one_mebibyte(bios):
    bios.packet(7, 1, offset=0xFFFF, segment=0xFFFF, size=24, flat=0x200000)
    assert not bios.call(ah=0x42, dl=0x80, si=PACKET).carry
    assert bios.memory.read(0x200000, 512) == bios.disk.sectors(7, 1)


def test_a_disc_has_sectors_of_2048_bytes(bios):
    bios.packet(10, 1)
    assert not bios.call(ah=0x42, dl=0xE0, si=PACKET).carry
    assert bios.memory.read(BUFFER, 2048) == bios.disc.sectors(40, 4)


@pytest.mark.parametrize("block", [16384, 16383, 1 << 63])
def test_a_packet_past_the_end_moves_nothing(bios, block):
    bios.packet(block, 2)
    frame = bios.call(ah=0x42, dl=0x80, si=PACKET)
    assert frame.carry
    assert bios.memory.read_u16(PACKET + 2) == 0
    assert bios.memory.read(BUFFER, 1024) == bytes(1024)


def test_a_buffer_outside_memory_is_a_boundary_error(bios):
    bios.packet(0, 1, offset=0xFFFF, segment=0xFFFF, size=24, flat=1 << 40)
    frame = bios.call(ah=0x42, dl=0x80, si=PACKET)
    assert (frame.carry, frame.ah) == (True, 0x09)


def test_a_write_goes_to_the_disk_and_a_protected_one_refuses(bios):
    bios.memory.write(BUFFER, b"new content".ljust(512, b"!"))
    assert not bios.call(ax=0x0301, bx=BUFFER, cx=2, dx=0x80).carry
    assert bios.disk.sectors(1, 1).startswith(b"new content!")
    frame = bios.call(ax=0x0301, bx=BUFFER, cx=2, dx=0x81)
    assert (frame.carry, frame.ah) == (True, 0x03)


def test_a_broken_disk_is_a_read_error(bios):
    bios.disk.fails = True
    frame = bios.call(ax=0x0201, bx=BUFFER, cx=1, dx=0x80)
    assert (frame.carry, frame.ah) == (True, 0x10)
    assert bios.call(ah=0x01, dl=0x80).ah == 0x10


def test_parameters(bios):
    frame = bios.call(ah=0x08, dl=0x80)
    assert (frame.ch, frame.cl, frame.dh, frame.dl) == (15, 63, 15, 2)
    frame = bios.call(ah=0x15, dl=0x80)
    assert (frame.ah, frame.cx << 16 | frame.dx) == (3, 16 * 16 * 63)


def test_extended_parameters_say_how_large_a_disk_is(bios):
    bios.memory.write_u16(PACKET, 30)
    assert not bios.call(ah=0x48, dl=0x80, si=PACKET).carry
    length, flags, *_, total, sector = struct.unpack("<HHIIIQH", bios.memory.read(PACKET, 26))
    assert (length, flags, total, sector) == (30, 2, 16384, 512)


def test_extensions_are_there(bios):
    frame = bios.call(ah=0x41, bx=0x55AA, dl=0x80)
    assert (frame.bx, frame.cx & 5, frame.carry) == (0xAA55, 5, False)


def test_an_unknown_function_or_drive_fails(bios):
    assert bios.call(ah=0xFE, dl=0x80).carry
    assert bios.call(ah=0x42, dl=0x99, si=PACKET).carry


@pytest.mark.parametrize(
    ("size", "heads", "cylinders"),
    [(100 << 20, 16, 203), (1 << 30, 64, 520), (4 << 30, 255, 522), (1 << 40, 255, 1024)],
)
def test_a_disk_without_partitions_gets_the_fewest_heads_that_do(size, heads, cylinders):
    assert guess_geometry(size, bytes(512)) == Geometry(cylinders, heads, 63)


def test_a_partition_table_tells_the_geometry_that_it_was_made_for():
    sector = bytearray(512)
    sector[510:] = b"\x55\xaa"
    # 1023 cylinders of 32 heads and 32 sectors; the partition ends with cylinder 99.
    sector[446:462] = bytes((0x80, 1, 1, 0, 6, 31, 32, 99)) + struct.pack("<II", 32, 100 * 32 * 32 - 32)
    assert guess_geometry(512 << 20, bytes(sector)) == Geometry(1024, 32, 32)
