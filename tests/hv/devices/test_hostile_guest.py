"""Whatever a guest writes to a controller's registers and leaves in memory, no device raises or hangs."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest

from tests.hv.devices.device_rig import FakeMemory, Line, PciRig, RamDisk
from tests.hv.devices.test_lsi53c1030 import Mpt
from tests.hv.devices.test_nvme import Nvme
from tests.hv.devices.test_pvscsi import Adapter
from tests.hv.devices.virtio_driver import BUFFERS, INDIRECT_FEATURE, Driver
from vdisk.hv.devices.ahci import AhciController
from vdisk.hv.devices.ata import AtaDisk
from vdisk.hv.devices.atapi import AtapiDrive, CdDrive
from vdisk.hv.devices.ide import IdeChannel
from vdisk.hv.devices.lsi53c1030 import Lsi53c1030
from vdisk.hv.devices.nvme import NvmeController
from vdisk.hv.devices.pci import PciFunction
from vdisk.hv.devices.piix_ide import PiixIde
from vdisk.hv.devices.pvscsi import Pvscsi
from vdisk.hv.devices.scsi_disk import ScsiDisk
from vdisk.hv.devices.virtio.blk import VirtioBlock
from vdisk.hv.devices.virtio.console import VirtioConsole
from vdisk.hv.devices.virtio.pci import VirtioPci
from vdisk.hv.devices.virtio.rng import VirtioEntropy

RAM_BYTES = 1 << 16
ROUNDS, WRITES = 12, 400


def disk() -> RamDisk:
    return RamDisk(64 << 10).fill()


def ide(memory: FakeMemory) -> PciFunction:
    drives = [AtaDisk(disk()), AtapiDrive(CdDrive(disk()))]
    return PiixIde(memory, [IdeChannel(Line(), drives), IdeChannel(Line(), drives[1:])])


CONTROLLERS: dict[str, tuple[Callable[[FakeMemory], PciFunction], tuple[int, ...]]] = {
    # The registers that start something get more than their share of the writes.
    "virtio-blk": (lambda memory: VirtioPci(VirtioBlock(memory, disk())), (8, 14, 16, 18, 20, 22, 24, 28, 0x3000)),
    "virtio-console": (lambda memory: VirtioPci(VirtioConsole(memory, lambda data: None)), (8, 14, 16, 18, 0x3004)),
    "virtio-rng": (lambda memory: VirtioPci(VirtioEntropy(memory)), (8, 14, 16, 18, 0x3000)),
    "ide": (ide, (0, 2, 4, 8, 10, 12)),
    "ahci": (
        lambda memory: AhciController(
            memory, [AtaDisk(disk(), is_sata=True), AtapiDrive(CdDrive(disk()), is_sata=True)]
        ),
        (0x04, 0x08, 0x100, 0x108, 0x118, 0x134, 0x138, 0x180, 0x188, 0x198, 0x1B4, 0x1B8),
    ),
    "nvme": (lambda memory: NvmeController(memory, disk()), (0x14, 0x24, 0x28, 0x30, 0x1000, 0x1004, 0x1008)),
    "pvscsi": (lambda memory: Pvscsi(memory, [ScsiDisk(disk())]), (0, 4, 4, 4, 4, 0x3014, 0x4018)),
    "lsi53c1030": (lambda memory: Lsi53c1030(memory, [ScsiDisk(disk())]), (0, 0, 0x30, 0x40, 0x40, 0x44)),
}


def value(chance: random.Random) -> int:
    """A number that is likely to mean something: a small one, an address in RAM, a bit, or anything."""
    return chance.choice(
        (
            chance.randrange(16),
            chance.randrange(RAM_BYTES) & ~0xFFF,
            chance.randrange(RAM_BYTES),
            1 << chance.randrange(32),
            0x42000000 | chance.randrange(64) << 16,
            chance.getrandbits(32),
            chance.getrandbits(32) | 0x11,
        )
    )


def fill(memory: FakeMemory, chance: random.Random) -> None:
    """RAM full of such numbers."""
    memory.ram[:] = struct.pack(f"<{RAM_BYTES // 4}I", *(value(chance) for _ in range(RAM_BYTES // 4)))


@pytest.mark.parametrize("name", CONTROLLERS)
def test_no_guest_breaks_a_controller(name: str) -> None:
    make, hot = CONTROLLERS[name]
    chance = random.Random(name)
    memory = FakeMemory(RAM_BYTES)
    rig = PciRig()
    function = rig.plug(make(memory))
    for _ in range(ROUNDS):
        fill(memory, chance)
        regions = [(bar, rig.region(function, index)) for index, bar in function.bars.items()]
        for _ in range(WRITES):
            bar, region = chance.choice(regions)
            size = chance.choice((1, 2, 4, 4, 4, 4, 8))
            offset = chance.choice(hot) if chance.random() < 0.7 else chance.randrange(bar.size)
            if offset + size > bar.size:
                continue
            region.write(offset, size, value(chance) & ((1 << 8 * size) - 1))
            assert 0 <= region.read(offset, size) < 1 << 8 * size
        rig.host.reset()
        rig.host.assign(0xC000, 0xE000_0000)


def test_no_packet_or_task_breaks_an_ide_drive() -> None:
    chance = random.Random("ide")
    memory = FakeMemory(RAM_BYTES)
    fill(memory, chance)
    channel = IdeChannel(Line(), [AtaDisk(disk()), AtapiDrive(CdDrive(disk()))])
    PiixIde(memory, [channel])
    for _ in range(4000):
        match chance.randrange(8):
            case 0:
                channel.write_block(0, 2, bytes(chance.getrandbits(8) for _ in range(12)))
            case 1:
                channel.read_block(0, 2, chance.randrange(300))
            case 2:
                channel.write(6, 1, chance.choice((0xE0, 0xF0, 0xA0, 0xB0)))
            case 3:
                channel.write(7, 1, chance.choice((0x20, 0x30, 0xA0, 0xA1, 0xC4, 0xC8, 0xCA, 0xEC, 0x06, 0xEF)))
            case 4:
                channel.control_block.write(0, 1, chance.choice((0, 2, 4, 0x80)))
            case _:
                channel.write(chance.randrange(8), 1, chance.getrandbits(8))
        channel.read(7, 1)


def piece(chance: random.Random, length: int) -> bytes:
    """Some bytes made of such numbers."""
    return b"".join(struct.pack("<I", value(chance)) for _ in range(length // 4 + 1))[:length]


def cdb(chance: random.Random) -> bytes:
    """A command block whose opcode is mostly one that exists, with small numbers in it."""
    opcodes = (0x00, 0x03, 0x08, 0x0A, 0x12, 0x1A, 0x25, 0x28, 0x2A, 0x35, 0x41, 0x42, 0x43, 0x46, 0x4A, 0x5A)
    opcodes += (0x88, 0x8A, 0x93, 0x9E, 0xA0, 0xA8, 0xBE, 0x51, 0x52, 0xBD, chance.randrange(256))
    return bytes((chance.choice(opcodes), *(chance.choice((0, 0, 0, 1, 16, 255)) for _ in range(15))))


def test_no_command_block_breaks_a_target() -> None:
    chance = random.Random("scsi")
    buffer = bytearray(1 << 16)
    good = 0
    for target in (ScsiDisk(disk()), CdDrive(disk()), CdDrive(None)):
        for _ in range(4000):
            buffer[:64] = piece(chance, 64)
            length = chance.choice((0, 1, 18, 512, 4096, 1 << 16))
            command = cdb(chance)[: chance.choice((0, 1, 5, 6, 10, 12, 16, 16))]
            result = target.execute(command, chance.choice((0, 0, 0, 1, 255)), [memoryview(buffer)[:length]])
            assert result.status in (0, 2)
            assert result.transferred <= length
            assert bool(result.sense) == (result.status == 2)
            good += result.status == 0
    assert good > 2000


def test_no_virtio_request_breaks_a_disk() -> None:
    chance = random.Random("virtio")
    memory = FakeMemory()
    driver = Driver(VirtioBlock(memory, disk()), memory).start(INDIRECT_FEATURE)
    answers = 0
    for _ in range(3000):
        if driver.status() & 64:
            driver.start(INDIRECT_FEATURE)
        driver.free = BUFFERS
        header = struct.pack("<IIQ", chance.choice((0, 1, 4, 8, 11, 13, 99)), 0, chance.choice((0, 5, 127, 1 << 40)))
        parts = [(*driver.buffer(header), False)]
        for _ in range(chance.randrange(5)):
            length = chance.choice((0, 1, 16, 512, 512, 4096, 0xFFFFFFFF))
            address = chance.choice((BUFFERS + 0x1000, BUFFERS + 0x2000, value(chance)))
            parts.append((address, length, chance.random() < 0.6))
        if chance.random() < 0.9:
            parts.append((BUFFERS + 0x9000, 1, True))
        chain = driver.indirect if chance.random() < 0.3 else driver.chain
        driver.offer(0, chain(0, parts))
        driver.kick(0)
        answers += len(driver.used(0))
    assert answers > 500


def test_no_nvme_command_breaks_a_controller() -> None:
    chance = random.Random("nvme")
    statuses = set()
    for _ in range(20):
        nvme = Nvme(disk()).start()
        nvme.memory.write(0x8000, piece(chance, 0x4000))
        for _ in range(150):
            queue = chance.randrange(2)
            opcode = chance.choice((0, 1, 2, 4, 5, 6, 8, 9, 10, chance.randrange(256)))
            address = chance.choice((0x100000, 0x100200, 0x8000, value(chance)))
            words = {f"cdw{n}": chance.choice((0, 1, 2, 7, 0x10001, value(chance))) for n in range(10, 16)}
            nvme.submit(queue, opcode, nsid=chance.choice((0, 1, 1, 2)), prp1=address, prp2=0x8000, **words)
            nvme.ring(queue)
            statuses |= {status for _, _, status in nvme.completions(queue)}
    assert {0, 1, 2, 0x80} <= statuses


def test_no_request_breaks_pvscsi() -> None:
    chance = random.Random("pvscsi")
    adapter = Adapter(ScsiDisk(disk())).start()
    adapter.memory.write(0x9000, piece(chance, 0x1000))
    statuses = set()
    for _ in range(3000):
        adapter.queue(
            cdb(chance),
            address=chance.choice((0x10000, 0x9000, 0x9004, value(chance))),
            length=chance.choice((0, 18, 512, 4096, value(chance))),
            flags=chance.randrange(32),
            target=chance.choice((0, 0, 0, 1)),
        )
        adapter.reg(0x4018, 0)
        statuses |= {(host, scsi) for *_, host, scsi in adapter.completions()}
    assert {(0, 0), (0, 2), (0x11, 0), (0x1A, 2)} == statuses


def test_no_frame_breaks_the_53c1030() -> None:
    chance = random.Random("lsi")
    mpt = Mpt(ScsiDisk(disk())).start()
    mpt.memory.write(0x7000, piece(chance, 0x1000))
    contexts = 0
    for _ in range(3000):
        if mpt.state != 2:
            mpt.reg(0, 0x40 << 24)
            mpt.start()
        if chance.random() < 0.3:
            frame = bytearray(piece(chance, 128))
            frame[3] = chance.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, frame[3]))
            mpt.post(bytes(frame))
        else:
            length = chance.choice((0, 18, 512, 4096, value(chance)))
            sgl = piece(chance, 64) if chance.random() < 0.5 else None
            frame_offset = chance.choice((0, 0, 14, 200))
            request = mpt.scsi(cdb(chance), length & 0xFFFFFF, sgl=sgl, chain_offset=frame_offset)
            mpt.post(request[:128])
        contexts += sum(isinstance(reply, int) for reply in mpt.replies())
    assert contexts > 100
