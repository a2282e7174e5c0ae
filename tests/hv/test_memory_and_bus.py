"""Guest memory in its two places, and a bus that knows who answers where."""

import pytest

from vdisk.errors import HypervisorError, OptionError
from vdisk.hv import layout
from vdisk.hv.bus import Bus, BusConflict, ByteWide
from vdisk.hv.cpu import Sample, read_code, translate
from vdisk.hv.memory import GuestMemory, GuestMemoryError


def test_memory_beyond_three_gibibytes_begins_at_four():
    memory = GuestMemory(layout.LOW_RAM_LIMIT + (1 << 20))
    memory.write(layout.HIGH_RAM_BASE, b"above")
    assert memory.read(layout.HIGH_RAM_BASE, 5) == b"above"
    assert memory.host_offset(layout.HIGH_RAM_BASE, 1) == layout.LOW_RAM_LIMIT
    for address in (layout.LOW_RAM_LIMIT, layout.HIGH_RAM_BASE + (1 << 20), layout.HIGH_RAM_BASE - 1, -1):
        with pytest.raises(GuestMemoryError):
            memory.view(address, 1)
    memory.close()


@pytest.mark.parametrize("span", [(0, -1), (-4, 8), ((8 << 20) - 1, 2), (1 << 63, 1 << 63)])
def test_a_range_outside_memory_is_refused(span):
    with pytest.raises(GuestMemoryError):
        GuestMemory(8 << 20).view(*span)


def test_a_view_is_the_memory_itself():
    memory = GuestMemory(8 << 20)
    memory.view(0x1000, 4)[:] = b"abcd"
    assert memory.read_u32(0x1000) == 0x64636261


@pytest.mark.parametrize("size", [0, 4096, (8 << 20) + 1])
def test_a_size_that_makes_no_sense_is_refused(size):
    with pytest.raises(OptionError):
        GuestMemory(size)


class Registers:
    """Sixteen bytes that note how they are reached."""

    def __init__(self):
        self.log = []

    def read(self, offset, size):
        self.log.append(("read", offset, size))
        return offset

    def write(self, offset, size, value):
        self.log.append(("write", offset, size, value))


class Block(Registers):
    def read_block(self, offset, size, count):
        self.log.append(("block", offset, size, count))
        return bytes(size * count)

    def write_block(self, offset, size, data):
        self.log.append(("block", offset, size, data))


def test_offsets_count_from_the_start_of_a_region():
    bus, device = Bus(), Registers()
    bus.add_ports(0x3F8, 8, device)
    bus.add_ports(0x64, 1, device, offset=4)
    assert bus.port_read(0x3FD, 1) == 5
    assert bus.port_read(0x64, 1) == 4
    bus.add_memory(0xF0000000, 16, device)
    bus.memory_write(0xF0000008, 4, 7)
    assert device.log[-1] == ("write", 8, 4, 7)


def test_nobody_answers_with_all_ones():
    bus = Bus()
    assert bus.port_read(0x80, 2) == 0xFFFF
    assert bus.memory_read(0xF0000000, 8) == (1 << 64) - 1
    assert bus.port_read_block(0x80, 2, 3) == b"\xff" * 6
    bus.port_write(0x80, 1, 1)


@pytest.mark.parametrize(("base", "size"), [(0x100, 16), (0xF8, 16), (0x10F, 1), (0x108, 64), (0x90, 0x200)])
def test_overlaps_are_refused_and_change_nothing(base, size):
    bus, first = Bus(), Registers()
    bus.add_ports(0x100, 16, first)
    bus.add_memory(0x100, 16, first)
    with pytest.raises(BusConflict):
        bus.add_ports(base, size, Registers())
    with pytest.raises(BusConflict):
        bus.add_memory(base, size, Registers())
    assert bus.port_read(0x10F, 1) == 15
    bus.add_ports(0x110, 1, Registers())


def test_a_region_can_move():
    bus, device = Bus(), Registers()
    bus.map_region("mem", 0x1000, 16, device)
    bus.unmap_region("mem", 0x1000, 16)
    bus.map_region("mem", 0x2000, 16, device)
    assert bus.memory_read(0x1000, 1) == 0xFF
    assert bus.memory_read(0x2001, 1) == 1


def test_string_io_goes_in_one_call_where_a_device_takes_it():
    bus, block, plain = Bus(), Block(), Registers()
    bus.add_ports(0x1F0, 1, block)
    bus.add_ports(0x300, 1, plain)
    bus.port_read_block(0x1F0, 2, 256)
    bus.port_write_block(0x1F0, 2, b"abcd")
    assert block.log == [("block", 0, 2, 256), ("block", 0, 2, b"abcd")]
    bus.port_write_block(0x300, 2, b"abcd")
    assert plain.log == [("write", 0, 2, 0x6261), ("write", 0, 2, 0x6463)]


def test_byte_registers_take_wide_accesses_apart():
    device = Registers()
    wide = ByteWide(device)
    assert wide.read(2, 2) == 0x0302
    wide.write(4, 2, 0xBBAA)
    assert device.log[-2:] == [("write", 4, 1, 0xAA), ("write", 5, 1, 0xBB)]


def sample(**changes):
    base = {"rip": 0, "rsp": 0, "rflags": 2, "cs_selector": 8, "cs_base": 0, "cr0": 0x80000001, "cr3": 0x1000}
    base |= {"cr4": 0x20, "efer": 0x500, "bits": 64}
    return Sample(**base | changes)


def test_the_guests_page_tables_are_walked():
    memory = GuestMemory(8 << 20)
    linear = 0xFFFFFFFF81000000
    for table, shift, entry in ((0x1000, 39, 0x2003), (0x2000, 30, 0x3003), (0x3000, 21, 0x4003), (0x4000, 12, 0x5003)):
        memory.write(table + (linear >> shift & 0x1FF) * 8, entry.to_bytes(8, "little"))
    memory.write(0x5123, b"\x0f\x0b")
    assert translate(memory, sample(), linear + 0x123) == 0x5123
    assert translate(memory, sample(), linear + 0x200000) is None
    assert read_code(memory, sample(rip=linear + 0x123), 2) == b"\x0f\x0b"
    memory.write(0x3000 + (linear >> 21 & 0x1FF) * 8, (0x400083).to_bytes(8, "little"))
    assert translate(memory, sample(), linear + 0x123) == 0x400123


def test_page_tables_outside_memory_map_nothing():
    assert translate(GuestMemory(8 << 20), sample(cr3=1 << 40), 0) is None
    assert issubclass(GuestMemoryError, HypervisorError)
