"""The entropy and console devices over virtio."""

from __future__ import annotations

from tests.hv.devices.device_rig import FakeMemory
from tests.hv.devices.virtio_driver import SLOT, Driver
from vdisk.hv.devices.virtio.console import VirtioConsole
from vdisk.hv.devices.virtio.rng import VirtioEntropy


def test_a_driver_gets_entropy_in_every_buffer() -> None:
    memory = FakeMemory()
    driver = Driver(VirtioEntropy(memory, source=lambda count: b"r" * count), memory)
    assert driver.rig.config(SLOT, 0) == 0x10051AF4
    driver.start(size=8)
    first, second = driver.buffer(100), driver.buffer(28)
    driver.offer(0, driver.chain(0, [(*first, True), (*second, True)]))
    driver.kick(0)
    assert driver.used(0) == [(0, 128)]
    assert memory.read(*first) + memory.read(*second) == b"r" * 128
    assert driver.irq


def test_the_hosts_entropy_is_not_constant_and_a_request_is_bounded() -> None:
    memory = FakeMemory()
    driver = Driver(VirtioEntropy(memory), memory).start(size=8)
    driver.offer(0, driver.chain(0, [(0x100000, 0x100000, True)]))
    driver.kick(0)
    assert driver.used(0) == [(0, 65536)]
    data = memory.read(0x100000, 65536)
    assert len(set(data)) == 256


def test_what_a_guest_prints_comes_out_and_input_waits_for_buffers() -> None:
    memory, printed = FakeMemory(), bytearray()
    console = VirtioConsole(memory, printed.extend, columns=132, rows=43)
    driver = Driver(console, memory)
    assert driver.rig.config(SLOT, 0) == 0x10031AF4
    driver.start(1, queues=2, size=16)
    assert (driver.device_config(0, 2), driver.device_config(2, 2)) == (132, 43)
    driver.offer(1, driver.chain(1, [(*driver.buffer(b"login: "), False)]))
    driver.kick(1)
    assert printed == b"login: "
    assert driver.used(1) == [(0, 0)]
    console.type(b"root\n")
    driver.function.poll(0)
    assert driver.used(0) == []
    small, large = driver.buffer(3), driver.buffer(16)
    driver.offer(0, driver.chain(0, [(*small, True)]))
    driver.offer(0, driver.chain(0, [(*large, True)]))
    driver.kick(0)
    assert driver.used(0) == [(0, 3), (1, 2)]
    assert memory.read(*small) == b"roo"
    assert memory.read(*large)[:2] == b"t\n"
    driver.offer(0, driver.chain(0, [(*large, True)]))
    driver.kick(0)
    assert driver.used(0) == []
    console.type(b"x")
    driver.function.poll(0)
    assert driver.used(0) == [(2, 1)]


def test_input_that_nobody_reads_is_bounded() -> None:
    console = VirtioConsole(FakeMemory(), lambda data: None)
    for _ in range(10):
        console.type(bytes(50000))
    assert len(console._waiting) == 65536


def test_an_empty_receive_buffer_asks_for_a_reset() -> None:
    memory = FakeMemory()
    console = VirtioConsole(memory, lambda data: None)
    driver = Driver(console, memory).start(queues=2, size=16)
    console.type(b"x")
    driver.offer(0, driver.chain(0, [(0x70000, 0, True)]))
    driver.kick(0)
    assert driver.status() & 64
