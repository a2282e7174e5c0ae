"""The BIOS services behind the ROM's traps: what they answer, and that no caller can upset them."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hv.devices.device_rig import RamDisk
from vdisk.hv import layout
from vdisk.hv.devices.vga import Vga
from vdisk.hv.firmware import rom
from vdisk.hv.firmware.bios import Bios
from vdisk.hv.firmware.disks import Drive
from vdisk.hv.kvm import Regs, Sregs
from vdisk.hv.memory import GuestMemory

STACK = 0x7000
REGISTERS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp")


class FakePci:
    def read_config(self, where, offset, size):
        return 0x12378086 >> 8 * offset & (1 << 8 * size) - 1 if where == 0 else (1 << 8 * size) - 1

    def write_config(self, where, offset, size, value):
        pass

    def functions(self):
        return [0]


class FakeClock:
    def now_bcd(self):
        return 0x20, 0x26, 0x12, 0x31, 0x23, 0x59, 0x58


class FakePort:
    def __init__(self):
        self.sent = bytearray()

    def read(self, offset, size):
        return 0x60 if offset == 5 else 0

    def write(self, offset, size, value):
        if offset == 0:
            self.sent.append(value)


class FakeVcpu:
    def __init__(self):
        self.regs, self.sregs = Regs(rsp=STACK), Sregs()
        self.dirty = 0

    def set_dirty(self, what):
        self.dirty |= what


class FakeCpu:
    def __init__(self):
        self.vcpu = FakeVcpu()


class Caller:
    """A machine without a processor: `call` does what a guest's INT does."""

    def __init__(self):
        self.memory = GuestMemory(4 << 20)
        self.port = FakePort()
        self.boots = 0
        self.time = 0.0
        drives = [Drive(0x80, "disk", RamDisk(1 << 20))]
        vga = Vga(self.memory, layout.VGA_TEXT)
        self.bios = Bios(self.memory, drives, vga, FakePci(), FakeClock(), [self.port], lambda: self.time, lambda: None)
        self.vga = vga
        self.bios.install({})
        self.bios.power_on()

    def call(self, vector, *, at_stub=None, **registers):
        cpu = FakeCpu()
        regs, sregs = cpu.vcpu.regs, cpu.vcpu.sregs
        sregs.cs.load_real(rom.SEGMENT)
        regs.rip = vector * rom.STUB_BYTES + 2 if at_stub is None else at_stub
        for name, value in registers.items():
            setattr(regs, name, value)
        self.memory.write(STACK, struct.pack("<HHH", 0x7C10, 0, 0x0202))
        self.bios.trap(cpu)
        regs.flags = self.memory.read_u16(STACK + 4)
        return cpu.vcpu


@pytest.fixture
def caller():
    return Caller()


@pytest.fixture(scope="module")
def shared():
    return Caller()


def test_vectors_lead_to_their_stubs(caller):
    for vector in (0x08, 0x10, 0x13, 0x19, 0x1A):
        assert caller.memory.read(vector * 4, 4) == struct.pack("<HH", vector * 8, 0xF000)


def test_teletype_writes_wraps_and_scrolls(caller):
    for character in b"first\r\n" + b"\n" * 23 + b"last" + b"x" * 80:
        caller.call(0x10, rax=0x0E00 | character, rbx=7)
    lines = caller.vga.screen().lines()
    assert "first" not in "".join(lines)
    assert lines[23].startswith("lastxxx")
    assert lines[24] == "xxxx"
    assert caller.vga.screen().cursor == (24, 4)
    assert bytes(caller.bios.log.teletype).startswith(b"first\r\n")


def test_a_window_scrolls_alone(caller):
    for row in range(25):
        caller.call(0x10, rax=0x0200, rdx=row << 8)
        caller.call(0x10, rax=0x0900 | 0x41 + row, rbx=0x0007, rcx=3)
    caller.call(0x10, rax=0x0601, rbx=0x0700, rcx=5 << 8 | 1, rdx=10 << 8 | 1)
    lines = caller.vga.screen().lines()
    assert lines[4] == "EEE"
    assert lines[5] == "FGF"
    assert lines[10] == "K K"


def test_e820_walks_through_the_map_and_ends(caller):
    total, ebx = 0, 0
    for _ in range(20):
        after = caller.call(0x15, rax=0xE820, rbx=ebx, rcx=20, rdx=0x534D4150, rdi=0x600)
        assert not after.regs.flags & 1
        _base, length, kind = struct.unpack("<QQI", caller.memory.read(0x600, 20))
        total += length if kind == 1 else 0
        ebx = after.regs.rbx
        if not ebx:
            break
    assert ebx == 0
    assert 3 << 20 < total <= 4 << 20


def test_no_key_sends_the_guest_to_wait_and_a_key_is_taken(caller):
    after = caller.call(0x16, rax=0)
    assert after.regs.rip == rom.build_rom().labels["wait_key"]
    caller.call(0, at_stub=rom.CALLS + rom.STUB_BYTES + 2, rax=0x1E)
    after = caller.call(0x16, rax=0x0100)
    assert not after.regs.flags & 0x40
    assert after.regs.rax == 0x1E61
    assert caller.call(0x16, rax=0).regs.rax == 0x1E61
    assert caller.call(0x16, rax=0x0100).regs.flags & 0x40


def test_the_ring_holds_fifteen_keys(caller):
    for _ in range(20):
        caller.call(0, at_stub=rom.CALLS + rom.STUB_BYTES + 2, rax=0x1E)
    taken = 0
    while not caller.call(0x16, rax=0x0100).regs.flags & 0x40:
        caller.call(0x16, rax=0)
        taken += 1
    assert taken == 15


def test_a_wait_ends_when_its_time_has_come(caller):
    labels = rom.build_rom().labels
    assert caller.call(0x15, rax=0x8600, rcx=0x000F, rdx=0x4240).regs.rip == labels["wait_time"]
    caller.time = 0.5
    assert caller.call(0x15, rax=0x8600, rcx=0x000F, rdx=0x4240).regs.rip == labels["wait_time"]
    caller.time = 1.1
    after = caller.call(0x15, rax=0x8600, rcx=0x000F, rdx=0x4240)
    assert after.regs.rip == 0x15 * 8 + 2


def test_block_moves_and_refuses_what_is_outside_memory(caller):
    table = bytearray(48)
    struct.pack_into("<HHBBBB", table, 16, 0xFFFF, 0x8000, 0, 0x93, 0, 0)
    struct.pack_into("<HHBBBB", table, 24, 0xFFFF, 0x0000, 0x20, 0x93, 0, 0)
    caller.memory.write(0x600, table)
    caller.memory.write(0x8000, b"moved up")
    assert not caller.call(0x15, rax=0x8700, rcx=4, rsi=0x600).regs.flags & 1
    assert caller.memory.read(0x200000, 8) == b"moved up"
    table[31] = 0xF0
    caller.memory.write(0x600, table)
    assert caller.call(0x15, rax=0x8700, rcx=4, rsi=0x600).regs.flags & 1


def test_pci_bios_finds_the_host_bridge(caller):
    assert caller.call(0x1A, rax=0xB101).regs.rdx == 0x20494350
    after = caller.call(0x1A, rax=0xB102, rcx=0x1237, rdx=0x8086, rsi=0)
    assert (after.regs.rax >> 8 & 0xFF, after.regs.flags & 1) == (0, 0)
    assert caller.call(0x1A, rax=0xB109, rbx=0, rdi=2).regs.rcx & 0xFFFF == 0x1237
    assert caller.call(0x1A, rax=0xB102, rcx=0x9999, rdx=0x8086).regs.flags & 1


def test_the_clock_and_the_ticks(caller):
    after = caller.call(0x1A, rax=0x0200)
    assert (after.regs.rcx & 0xFFFF, after.regs.rdx >> 8 & 0xFF) == (0x2359, 0x58)
    ticks = caller.call(0x1A, rax=0).regs
    assert (ticks.rcx << 16 | ticks.rdx) / 18.2065 == pytest.approx(86398, abs=1)
    assert caller.call(0x1A, rax=0xBB00).regs.flags & 1


def test_the_serial_service_sends(caller):
    for character in b"ok":
        caller.call(0x14, rax=0x0100 | character, rdx=0)
    assert caller.port.sent == b"ok"


def test_an_out_from_elsewhere_is_not_the_firmwares(caller):
    cpu = FakeCpu()
    cpu.vcpu.sregs.cs.load_real(0x1000)
    cpu.vcpu.regs.rip = 0x80
    caller.bios.trap(cpu)
    assert cpu.vcpu.dirty == 0
    assert caller.bios.log.calls == {}


@given(
    vector=st.sampled_from([0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x1A, 0x77, 0xFF]),
    ah=st.integers(0, 255),
    values=st.lists(st.integers(0, (1 << 64) - 1), min_size=7, max_size=7),
    segments=st.lists(st.integers(0, 0xFFFF), min_size=3, max_size=3),
    stack=st.integers(0, 0xFFFF),
)
def test_no_registers_upset_a_service(shared, vector, ah, values, segments, stack):
    cpu = FakeCpu()
    regs, sregs = cpu.vcpu.regs, cpu.vcpu.sregs
    for name, value in zip(REGISTERS, values, strict=True):
        setattr(regs, name, value)
    regs.rax = regs.rax & ~0xFF00 | ah << 8
    regs.rsp = stack
    for segment, selector in zip((sregs.ds, sregs.es, sregs.ss), segments, strict=True):
        segment.load_real(selector)
    sregs.cs.load_real(rom.SEGMENT)
    regs.rip = vector * rom.STUB_BYTES + 2
    shared.bios.trap(cpu)
    assert regs.rip == vector * rom.STUB_BYTES + 2 or regs.rip in rom.build_rom().labels.values()
