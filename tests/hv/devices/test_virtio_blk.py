"""A guest's driver reads and writes a disk over virtio-blk, in the legacy and the modern way."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from tests.hv.devices.device_rig import FakeMemory, RamDisk
from tests.hv.devices.virtio_driver import EVENT_INDEX, INDIRECT_FEATURE, SLOT, VERSION_1, Driver
from vdisk.hv.devices.virtio.blk import VirtioBlock

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
FLUSH_FEATURE = 1 << 9


class BlockDriver(Driver):
    """Adds the block request to the driver."""

    def request(
        self,
        kind: int,
        sector: int,
        *,
        out: list[bytes] = [],  # noqa: B006
        into: list[int] = [],  # noqa: B006
        build: Callable[[int, list[tuple[int, int, bool]]], int] | None = None,
    ) -> tuple[int, bytes, int]:
        """Send one request and wait: (status, what was read, length in the used ring)."""
        parts = [(*self.buffer(struct.pack("<IIQ", kind, 0, sector)), False)]
        parts += [(*self.buffer(data), False) for data in out]
        targets = [self.buffer(length) for length in into]
        parts += [(*target, True) for target in targets]
        status = self.buffer(b"\xff")
        parts.append((*status, True))
        head = (build or self.chain)(0, parts)
        self.offer(0, head)
        self.kick(0)
        [(used_head, written)] = self.used(0)
        assert used_head == head
        return self.memory.read(*status)[0], b"".join(self.memory.read(*t) for t in targets), written


@pytest.fixture
def disk() -> RamDisk:
    return RamDisk().fill()


@pytest.fixture(params=["legacy", "modern", "modern-only"])
def driver(request: pytest.FixtureRequest, disk: RamDisk) -> BlockDriver:
    memory = FakeMemory()
    return BlockDriver(
        VirtioBlock(memory, disk, serial="disk-one"),
        memory,
        legacy=request.param == "legacy",
        modern_only=request.param == "modern-only",
    )


@pytest.fixture
def modern(disk: RamDisk) -> BlockDriver:
    memory = FakeMemory()
    return BlockDriver(VirtioBlock(memory, disk), memory)


def test_the_ids_are_those_of_the_specification(disk: RamDisk) -> None:
    memory = FakeMemory()
    transitional = Driver(VirtioBlock(memory, disk), memory)
    assert transitional.rig.config(SLOT, 0) == 0x10011AF4
    assert transitional.rig.config(SLOT, 0x2C) == 0x00021AF4
    assert transitional.rig.config(SLOT, 8, 1) == 0
    modern_only = Driver(VirtioBlock(memory, disk), memory, modern_only=True)
    assert modern_only.rig.config(SLOT, 0) == 0x10421AF4
    assert modern_only.rig.config(SLOT, 8, 1) == 1
    assert set(modern_only.structures) == set(transitional.structures) == {1, 2, 3, 4, 5}


def test_a_driver_reads_the_capacity_and_sectors(driver: BlockDriver, disk: RamDisk) -> None:
    driver.start(FLUSH_FEATURE)
    assert driver.device_config(0, 4) == disk.size // 512
    assert driver.device_config(4, 4) == 0
    assert driver.device_config(20, 4) == 512
    assert driver.request(IN, 7, into=[512]) == (0, disk.sectors(7, 1), 513)
    assert driver.irq
    assert driver.isr() == 1
    assert not driver.irq
    assert driver.isr() == 0
    assert driver.request(IN, 100, into=[512, 1024, 4096, 512]) == (0, disk.sectors(100, 12), 6145)


def test_large_reads_go_straight_into_guest_memory(driver: BlockDriver, disk: RamDisk) -> None:
    driver.start()
    assert driver.request(IN, 0, into=[131072, 65536])[:2] == (0, disk.sectors(0, 384))


def test_writes_arrive_and_are_flushed_unless_the_driver_flushes(driver: BlockDriver, disk: RamDisk) -> None:
    driver.start()
    assert driver.request(OUT, 5, out=[b"a" * 512, b"b" * 1024]) == (0, b"", 1)
    assert disk.sectors(5, 3) == b"a" * 512 + b"b" * 1024
    assert disk.flushes == 1
    driver.start(FLUSH_FEATURE)
    assert driver.request(OUT, 5, out=[b"c" * 512])[0] == 0
    assert disk.flushes == 1
    assert driver.request(FLUSH, 0)[0] == 0
    assert disk.flushes == 2


def test_get_id_gives_twenty_bytes(driver: BlockDriver) -> None:
    driver.start()
    assert driver.request(GET_ID, 0, into=[20]) == (0, b"disk-one".ljust(20, b"\0"), 21)


def test_discard_and_write_zeroes(modern: BlockDriver, disk: RamDisk) -> None:
    assert modern.offered() >> 13 & 3 == 3
    modern.start(3 << 13)
    ranges = struct.pack("<QIIQII", 16, 8, 0, 64, 16, 0)
    assert modern.request(DISCARD, 0, out=[ranges])[0] == 0
    assert disk.discards == [(8192, 4096), (32768, 8192)]
    assert modern.request(WRITE_ZEROES, 0, out=[struct.pack("<QII", 8, 8, 1)])[0] == 0
    assert disk.zeroed == [(4096, 4096, True)]
    assert disk.sectors(8, 8) == bytes(4096)
    assert modern.request(WRITE_ZEROES, 0, out=[struct.pack("<QII", 8, 8, 2)])[0] == 2
    assert modern.request(DISCARD, 0, out=[struct.pack("<QII", 2048, 1, 0)])[0] == 1
    assert modern.request(DISCARD, 0, out=[b"short"])[0] == 1
    assert modern.request(DISCARD, 0)[0] == 1


@pytest.mark.parametrize(("sector", "length"), [(2048, 512), (2047, 1024), (1 << 63, 512), (0, 100)])
def test_a_range_beyond_the_disk_is_an_io_error(modern: BlockDriver, disk: RamDisk, sector: int, length: int) -> None:
    modern.start()
    before = bytes(disk.data)
    assert modern.request(IN, sector, into=[length])[0] == 1
    assert modern.request(OUT, sector, out=[bytes(length)])[0] == 1
    assert bytes(disk.data) == before


def test_a_read_only_disk_says_so_and_refuses_writes() -> None:
    memory, disk = FakeMemory(), RamDisk(writable=False).fill()
    driver = BlockDriver(VirtioBlock(memory, disk), memory)
    assert driver.offered() & 1 << 5
    assert not driver.offered() & 3 << 13
    driver.start()
    assert driver.request(OUT, 0, out=[bytes(512)])[0] == 1
    assert driver.request(FLUSH, 0)[0] == 0
    assert driver.request(DISCARD, 0, out=[bytes(16)])[0] == 2
    assert driver.request(IN, 3, into=[512])[1] == disk.sectors(3, 1)


def test_a_failing_disk_is_an_io_error(modern: BlockDriver, disk: RamDisk) -> None:
    modern.start()
    disk.fails = True
    assert modern.request(IN, 0, into=[512])[0] == 1
    assert modern.request(OUT, 0, out=[bytes(512)])[0] == 1
    disk.fails = False
    assert modern.request(IN, 0, into=[512])[0] == 0


def test_an_unknown_request_is_unsupported(modern: BlockDriver) -> None:
    modern.start()
    assert modern.request(99, 0)[0] == 2


def test_indirect_chains(modern: BlockDriver, disk: RamDisk) -> None:
    modern.start(INDIRECT_FEATURE)
    for sector in range(100):  # more requests than the table has entries
        status, data, _ = modern.request(IN, sector, into=[512, 512], build=modern.indirect)
        assert (status, data) == (0, disk.sectors(sector, 2))


def test_header_and_status_may_share_descriptors_with_data(modern: BlockDriver, disk: RamDisk) -> None:
    modern.start()
    header, data = modern.buffer(struct.pack("<IIQ", OUT, 0, 9) + b"x" * 100), modern.buffer(b"y" * 412)
    status = modern.buffer(b"\xff")
    modern.offer(0, modern.chain(0, [(*header, False), (*data, False), (*status, True)]))
    split = modern.buffer(struct.pack("<II", IN, 0)), modern.buffer(struct.pack("<Q", 9))
    target = modern.buffer(513)
    modern.offer(0, modern.chain(0, [(*split[0], False), (*split[1], False), (*target, True)]))
    modern.kick(0)
    assert [written for _, written in modern.used(0)] == [1, 513]
    assert modern.memory.read(*target) == b"x" * 100 + b"y" * 412 + b"\0"


def test_a_batch_interrupts_once(modern: BlockDriver) -> None:
    modern.start()
    line = modern.function.intx
    rises: list[bool] = []
    modern.function.intx = lambda level: (rises.append(level), line(level))[1] if level else line(level)
    for sector in range(10):
        header, target = modern.buffer(struct.pack("<IIQ", IN, 0, sector)), modern.buffer(513)
        modern.offer(0, modern.chain(0, [(*header, False), (*target, True)]))
    modern.kick(0)
    assert len(modern.used(0)) == 10
    assert rises == [True]


def test_the_driver_can_do_without_interrupts(modern: BlockDriver) -> None:
    modern.start()
    _, avail, _ = modern.rings(0)
    modern.memory.write(avail, b"\x01\x00")
    modern.request(IN, 0, into=[512])
    assert not modern.irq
    modern.memory.write(avail, b"\x00\x00")
    modern.request(IN, 0, into=[512])
    assert modern.irq


def test_the_event_index_says_when_to_interrupt_and_to_kick(modern: BlockDriver) -> None:
    modern.start(EVENT_INDEX)
    modern.set_used_event(0, 1)
    modern.request(IN, 0, into=[512])
    assert not modern.irq
    assert modern.avail_event(0) == 1
    modern.request(IN, 0, into=[512])
    assert modern.irq
    assert modern.avail_event(0) == 2


def test_ring_indexes_wrap(modern: BlockDriver, disk: RamDisk) -> None:
    modern.start(EVENT_INDEX, size=4)
    queue = modern.function.device.queues[0]
    queue.last_avail = queue.used_index = queue._signalled_used = 0xFFFE
    modern.avail_index[0] = modern.used_seen[0] = 0xFFFE
    for at in range(5):
        modern.set_used_event(0, modern.used_seen[0])
        assert modern.request(IN, at, into=[512])[1] == disk.sectors(at, 1)
        assert modern.isr() == 1


def test_msix_vectors_carry_queue_interrupts(modern: BlockDriver) -> None:
    msix_at = next(at for kind, at in modern.rig.capabilities(SLOT) if kind == 0x11)
    assert modern.rig.config(SLOT, msix_at + 2, 2) == 1  # two vectors
    table = modern.rig.region(modern.function, 1)
    for vector in (0, 1):
        table.write(16 * vector, 4, 0xFEE00000)
        table.write(16 * vector + 8, 4, 0x50 + vector)
        table.write(16 * vector + 12, 4, 0)
    modern.rig.config(SLOT, msix_at + 2, 2, value=0x8000)
    modern.start()
    assert modern.common(26, 2) == 0xFFFF
    modern.common(16, 2, 0)
    modern.common(26, 2, 1)
    assert (modern.common(16, 2), modern.common(26, 2)) == (0, 1)
    modern.request(IN, 0, into=[512])
    assert modern.rig.messages == [(0xFEE00000, 0x51)]
    assert not modern.irq
    modern.common(26, 2, 7)
    assert modern.common(26, 2) == 0xFFFF


def test_msix_moves_the_legacy_device_configuration(disk: RamDisk) -> None:
    memory = FakeMemory()
    driver = BlockDriver(VirtioBlock(memory, disk), memory, legacy=True).start()
    assert driver.ports(20, 4) == disk.size // 512
    msix_at = next(at for kind, at in driver.rig.capabilities(SLOT) if kind == 0x11)
    driver.rig.config(SLOT, msix_at + 2, 2, value=0x8000)
    assert driver.ports(24, 4) == disk.size // 512
    driver.ports(22, 2, 1)
    assert driver.ports(22, 2) == 1
    assert driver.ports(20, 2) == 0xFFFF


def test_features_that_were_not_offered_are_refused(modern: BlockDriver) -> None:
    for features in (VERSION_1 | 1 << 40, 1 << 9):
        modern.status(0)
        modern.status(3)
        for half in (0, 1):
            modern.common(8, 4, half)
            modern.common(12, 4, features >> 32 * half & 0xFFFFFFFF)
        modern.status(11)
        assert modern.status() == 3


def test_a_reset_forgets_everything(driver: BlockDriver) -> None:
    driver.start()
    driver.request(IN, 0, into=[512])
    assert driver.function.is_live
    driver.status(0)
    assert driver.status() == 0
    assert not driver.irq
    assert not driver.function.is_live
    assert not driver.function.device.queues[0].enabled
    driver.kick(0)
    driver.start()
    assert driver.request(IN, 0, into=[512])[0] == 0


def test_the_window_in_configuration_space_reaches_the_structures(modern: BlockDriver, disk: RamDisk) -> None:
    at = modern.structures[5][3]
    bar, offset, _, _ = modern.structures[4]
    modern.rig.config(SLOT, at + 4, 1, value=bar)
    modern.rig.config(SLOT, at + 8, value=offset)
    modern.rig.config(SLOT, at + 12, value=4)
    assert modern.rig.config(SLOT, at + 16) == disk.size // 512
    bar, offset, _, _ = modern.structures[1]
    modern.rig.config(SLOT, at + 8, value=offset + 20)
    modern.rig.config(SLOT, at + 12, value=1)
    modern.rig.config(SLOT, at + 16, 1, value=1)
    assert modern.status() == 1
    modern.rig.config(SLOT, at + 8, value=0xFFFFFFF0)
    modern.rig.config(SLOT, at + 16, value=1)
    assert modern.status() == 1


def broken_chains() -> list[tuple[str, list[tuple[int, int, int, int]]]]:
    header, status = 0x70000, 0x70010
    return [
        ("loop", [(header, 16, 1, 1), (status, 1, 1, 0)]),
        ("next outside the table", [(header, 16, 1, 900)]),
        ("no status", [(header, 16, 0, 0)]),
        ("no header", [(status, 1, 2, 0)]),
        ("status outside RAM", [(header, 16, 1, 1), (1 << 40, 1, 2, 0)]),
        ("header outside RAM", [(1 << 63, 16, 1, 1), (status, 1, 2, 0)]),
        ("short header", [(header, 8, 1, 1), (status, 1, 2, 0)]),
        ("empty status", [(header, 16, 1, 1), (status, 0, 2, 0)]),
        ("readable behind writable", [(status, 1, 3, 1), (header, 16, 0, 0)]),
        ("empty indirect", [(header, 0, 4, 0)]),
        ("odd indirect", [(header, 17, 4, 0)]),
        ("indirect outside RAM", [(1 << 40, 32, 4, 0)]),
        ("giant indirect", [(0, 0xFFFFFFF0, 4, 0)]),
        ("nested indirect", [(0x10000, 16, 4, 0)]),
    ]


@pytest.mark.parametrize(("name", "descriptors"), broken_chains(), ids=[name for name, _ in broken_chains()])
def test_a_broken_chain_asks_for_a_reset(
    modern: BlockDriver, name: str, descriptors: list[tuple[int, int, int, int]]
) -> None:
    modern.start()
    for descriptor in descriptors:
        modern.descriptor(0, *descriptor)
    modern.offer(0, 0)
    modern.kick(0)
    assert modern.status() & 64
    assert modern.isr() & 2
    modern.kick(0)
    modern.start()
    assert modern.request(IN, 0, into=[512])[0] == 0


def test_data_outside_ram_is_an_io_error(modern: BlockDriver) -> None:
    modern.start()
    header, status = modern.buffer(struct.pack("<IIQ", IN, 0, 0)), modern.buffer(b"\xff")
    for address, length in [(1 << 40, 512), (0, 0xFFFFFE00), ((1 << 64) - 512, 512)]:
        modern.offer(0, modern.chain(0, [(*header, False), (address, length, True), (*status, True)]))
        modern.kick(0)
        assert modern.memory.read(*status) == b"\x01"
    assert not modern.status() & 64


def test_an_impossible_available_index_or_head_asks_for_a_reset(modern: BlockDriver) -> None:
    modern.start()
    _, avail, _ = modern.rings(0)
    modern.memory.write(avail + 2, struct.pack("<H", 65))
    modern.kick(0)
    assert modern.status() & 64
    modern.start()
    modern.memory.write(avail + 2, bytes(2))
    modern.offer(0, 64)
    modern.kick(0)
    assert modern.status() & 64


@pytest.mark.parametrize("size", [0, 3, 512])
def test_a_queue_of_an_impossible_size_asks_for_a_reset(modern: BlockDriver, size: int) -> None:
    modern.start(size=size)
    assert modern.status() & 64


def test_rings_outside_ram_ask_for_a_reset(disk: RamDisk) -> None:
    memory = FakeMemory()
    driver = BlockDriver(VirtioBlock(memory, disk), memory, legacy=True)
    driver.ports(14, 2, 0)
    driver.ports(8, 4, 0xFFFFFFF)
    assert driver.status() & 64
    driver.status(0)
    assert driver.ports(8, 4) == 0
    driver.ports(14, 2, 9)
    assert driver.ports(12, 2) == 0
    driver.ports(8, 4, 16)


def test_every_register_can_be_read_and_written_in_any_width(driver: BlockDriver) -> None:
    for bar in driver.function.bars:
        region = driver.rig.region(driver.function, bar)
        for value in (0, 0xFFFFFFFFFFFFFFFF, 1, 0x12345678):
            for offset in (*range(64), 0x1000, 0x2000, 0x2010, 0x3000, 0x3FFC):
                for size in (1, 2, 4, 8):
                    if offset + size <= driver.function.bars[bar].size:
                        region.write(offset, size, value & ((1 << 8 * size) - 1))
                        assert 0 <= region.read(offset, size) < 1 << 8 * size
