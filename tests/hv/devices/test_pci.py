"""A guest finds PCI functions by ports CF8 and CFC, sizes and moves their BARs, and gets their interrupts."""

from __future__ import annotations

import pytest

from tests.hv.devices.device_rig import Line, PciRig
from vdisk.hv.devices.chipset import I440BX, AgpBridge, HostBridge, IsaBridge, PowerManagement
from vdisk.hv.devices.pci import Bar, PciFunction


class Registers:
    def __init__(self) -> None:
        self.log: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        return offset

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append((offset, size, value))


@pytest.fixture
def rig() -> PciRig:
    return PciRig()


def function(*, pin: int = 1) -> PciFunction:
    return PciFunction(
        0x1234,
        0x5678,
        0x010601,
        revision=7,
        subsystem=(0xAAAA, 0xBBBB),
        interrupt_pin=pin,
        bars={0: Bar("io", 32, Registers()), 5: Bar("mem", 4096, Registers())},
    )


def test_a_guest_reads_ids_in_every_width(rig: PciRig) -> None:
    rig.host.plug(3, function())
    assert rig.config(3, 0) == 0x56781234
    assert rig.config(3, 2, 2) == 0x5678
    assert rig.config(3, 1, 1) == 0x12
    assert rig.config(3, 8) == 0x01060107
    assert rig.config(3, 0x2C) == 0xBBBBAAAA
    assert rig.config(4, 0) == 0xFFFFFFFF
    assert rig.config(4, 0, 1) == 0xFF
    assert rig.host.read(0, 4) == 0x8000_2000


def test_nothing_answers_on_other_buses_or_with_the_enable_bit_off(rig: PciRig) -> None:
    rig.host.plug(3, function())
    rig.host.write(0, 4, 0x8001_0000 | 3 << 11)
    assert rig.host.read(4, 4) == 0xFFFFFFFF
    rig.host.write(0, 4, 3 << 11)
    assert rig.host.read(4, 4) == 0xFFFFFFFF


def test_sizing_tells_a_bars_length_and_maps_nothing(rig: PciRig) -> None:
    rig.host.plug(3, function())
    rig.config(3, 4, 2, value=3)
    rig.config(3, 0x10, value=0xFFFFFFFF)
    rig.config(3, 0x24, value=0xFFFFFFFF)
    assert rig.config(3, 0x10) == 0xFFFFFFE1
    assert rig.config(3, 0x24) == 0xFFFFF000
    assert rig.config(3, 0x14) == 0
    assert rig.maps == {}


def test_a_bar_is_mapped_while_decoding_is_on_and_moves(rig: PciRig) -> None:
    rig.host.plug(3, function())
    rig.config(3, 0x10, value=0xC000)
    rig.config(3, 0x24, value=0xE0000000)
    assert rig.maps == {}
    rig.config(3, 4, 2, value=1)
    assert list(rig.maps) == [("io", 0xC000)]
    rig.config(3, 4, 1, value=3)
    assert set(rig.maps) == {("io", 0xC000), ("mem", 0xE0000000)}
    rig.config(3, 0x11, 1, value=0xD0)
    assert set(rig.maps) == {("io", 0xD000), ("mem", 0xE0000000)}
    rig.config(3, 4, 2, value=0)
    assert rig.maps == {}


def test_two_bars_on_one_address_take_turns(rig: PciRig) -> None:
    rig.host.plug(3, function())
    rig.host.plug(4, function())
    for slot in (3, 4):
        rig.config(slot, 0x10, value=0xC000)
        rig.config(slot, 4, 2, value=1)
    assert rig.maps["io", 0xC000][1] is rig.host.functions[3, 0].bars[0].region
    rig.config(3, 0x10, value=0xC100)
    assert rig.maps["io", 0xC100][1] is rig.host.functions[3, 0].bars[0].region
    assert rig.maps["io", 0xC000][1] is rig.host.functions[4, 0].bars[0].region


def test_read_only_fields_stay(rig: PciRig) -> None:
    rig.host.plug(3, function())
    before = bytes(rig.host.functions[3, 0].config)
    for offset in (0, 8, 0x0C, 0x14, 0x2C, 0x34, 0x80):
        rig.config(3, offset, value=0xFFFFFFFF)
    assert bytes(rig.host.functions[3, 0].config) == before


def test_assign_gives_each_bar_its_own_aligned_place(rig: PciRig) -> None:
    rig.host.routing[:] = bytes([10, 11, 10, 11])
    for slot in (2, 3, 4):
        rig.host.plug(slot, function())
    io_end, memory_end = rig.host.assign(0xC000, 0xE0000000)
    assert (io_end, memory_end) == (0xC000 + 3 * 32, 0xE0000000 + 3 * 4096)
    assert len(rig.maps) == 6
    assert [rig.config(slot, 0x3C, 1) for slot in (2, 3, 4)] == [11, 10, 11]


def test_intx_follows_the_routing_and_is_shared(rig: PciRig) -> None:
    bridge = IsaBridge()
    rig.host.plug(1, bridge)
    first, second = function(), function()
    rig.host.plug(3, first)
    rig.host.plug(7, second)  # four slots on: the same line
    line = rig.host.line_of(3, 1)
    assert line == rig.host.line_of(7, 1) == 2
    first.set_irq(True)
    assert rig.irq == {}
    rig.config(1, 0x60 + line, 1, value=11)
    assert rig.irq == {11: True}
    second.set_irq(True)
    first.set_irq(False)
    assert rig.irq[11]
    rig.config(1, 0x60 + line, 1, value=5)
    assert rig.irq == {11: False, 5: True}
    assert rig.config(7, 6, 2) & 8
    rig.config(7, 4, 2, value=0x400)
    assert not rig.irq[5]
    rig.config(7, 4, 2, value=0)
    assert rig.irq[5]
    second.set_irq(False)
    assert not rig.irq[5]
    assert not rig.config(7, 6, 2) & 8


def test_msi_sends_one_message_for_each_rise(rig: PciRig) -> None:
    device = function()
    device.add_capability(0x09, b"\x06abc")
    device.add_msi()
    rig.plug(device)
    [(vendor, _), (msi, at)] = rig.capabilities(3)
    assert (vendor, msi) == (0x09, 0x05)
    rig.config(3, at + 4, value=0xFEE01000)
    rig.config(3, at + 12, 2, value=0x4041)
    device.set_irq(True)
    assert rig.irq[11]
    assert not rig.messages
    device.set_irq(False)
    rig.config(3, at + 2, 2, value=1)
    device.set_irq(True)
    device.set_irq(True)
    assert rig.messages == [(0xFEE01000, 0x4041)]
    assert not rig.irq[11]
    device.set_irq(False)
    device.set_irq(True)
    assert len(rig.messages) == 2


def test_msix_keeps_masked_vectors_pending(rig: PciRig) -> None:
    device = function()
    msix = device.add_msix(1, 3)
    rig.plug(device)
    [(kind, at)] = rig.capabilities(3)
    assert kind == 0x11
    assert rig.config(3, at + 2, 2) == 2
    table_bar, pba = rig.config(3, at + 4), rig.config(3, at + 8)
    assert (table_bar, pba) == (1, 0x801)
    table = rig.region(device, 1)
    assert table.read(12, 4) == 1
    for vector in range(3):
        table.write(16 * vector, 4, 0xFEE00000)
        table.write(16 * vector + 8, 4, 0x40 + vector)
    rig.config(3, at + 2, 2, value=0x8000)
    msix.notify(1)
    msix.notify(2)
    assert rig.messages == []
    assert table.read(0x800, 8) == 0b110
    table.write(16 + 12, 4, 0)
    assert rig.messages == [(0xFEE00000, 0x41)]
    table.write(32 + 12, 4, 0)
    assert rig.messages[-1] == (0xFEE00000, 0x42)
    rig.config(3, at + 2, 2, value=0xC000)
    msix.notify(1)
    assert len(rig.messages) == 2
    rig.config(3, at + 2, 2, value=0x8000)
    assert len(rig.messages) == 3
    msix.notify(99)
    assert len(rig.messages) == 3


def test_the_reset_port_asks_for_a_reset_once_a_rise(rig: PciRig) -> None:
    rig.host.write(1, 1, 0x02)
    assert rig.resets == 0
    assert rig.host.read(1, 1) == 0x02
    rig.host.write(1, 1, 0x06)
    assert rig.resets == 1


def test_a_reset_unmaps_and_masks(rig: PciRig) -> None:
    device = function()
    device.add_msix(1, 2)
    rig.plug(device)
    device.set_irq(True)
    assert rig.maps
    rig.host.reset()
    assert rig.maps == {}
    assert not rig.irq[11]
    assert rig.config(3, 4, 2) == 0
    assert rig.config(3, 0x10) == 1


def test_the_bridges_of_a_board(rig: PciRig) -> None:
    block = Registers()
    rig.host.plug(0, HostBridge())
    rig.host.plug(1, IsaBridge())
    rig.host.plug(1, PowerManagement(block), 3)
    rig.host.plug(2, AgpBridge())
    assert rig.config(0, 0) == 0x12378086
    assert rig.config(0, 0x2C) == 0x11001AF4
    assert rig.config(0, 0x59, 1) == 0x30
    rig.config(0, 0x5A, 1, value=0xFF)
    assert rig.config(0, 0x5A, 1) == 0x33
    assert rig.config(1, 0) == 0x70008086
    assert rig.config(1, 0x0E, 1) == 0x80
    assert rig.config(1, 0x60) == 0x80808080
    assert rig.config(1, 0, number=3) == 0x71138086
    rig.config(1, 0x40, value=0xB001, number=3)
    assert rig.maps == {}
    rig.config(1, 0x80, 1, value=1, number=3)
    assert rig.maps == {("io", 0xB000): (64, block)}
    rig.config(1, 0x40, value=0x601, number=3)
    assert list(rig.maps) == [("io", 0x600)]
    assert rig.config(2, 0x0E, 1) == 1
    assert HostBridge(I440BX).config_read(0, 4) == 0x71908086


def test_a_function_without_a_pin_never_interrupts(rig: PciRig) -> None:
    device = function(pin=0)
    rig.plug(device)
    device.set_irq(True)
    assert rig.irq == {}
    device.intx = line = Line()
    device.set_irq(True)
    assert line.level


def test_a_slot_is_taken_once(rig: PciRig) -> None:
    rig.host.plug(3, function())
    with pytest.raises(ValueError, match="taken"):
        rig.host.plug(3, function())
    with pytest.raises(ValueError, match="function 0"):
        rig.host.plug(4, function(), 1)
