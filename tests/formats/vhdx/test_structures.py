"""Headers, region tables, metadata and log entries: which one counts, and what is refused by its name."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from vdisk import formats
from vdisk.errors import Corrupt, ImageError, OptionError, Unsupported
from vdisk.formats.vhdx import structs
from vdisk.formats.vhdx.crc32c import crc32c
from vdisk.formats.vhdx.header import read_headers, sealed
from vdisk.formats.vhdx.image import VhdxImage
from vdisk.formats.vhdx.log import LogWriter
from vdisk.storage.file import FileStorage
from vdisk.storage.memory import MemoryStorage

MIB = 1 << 20
LOG_OFFSET, METADATA_OFFSET, BAT_OFFSET = MIB, 2 * MIB, 3 * MIB


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "disk.vhdx"
    formats.create(found, 8 * MIB)
    with formats.open(found, writable=True) as disk:
        disk.write(0, b"first block")
    return found


def patch(path: Path, offset: int, data: bytes, *, seal: tuple[int, int] | None = None) -> None:
    """Overwrite bytes, and mend the checksum of the structure (offset, length) that they are in."""
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    if seal is not None:
        start, length = seal
        content[start : start + length] = sealed(bytes(content[start : start + length]))
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"", 0),
    ],
)
def test_crc32c_of_what_rfc_3720_has(data: bytes, checksum: int) -> None:
    assert crc32c(data) == checksum


@pytest.mark.parametrize("length", [1, 63, 64, 4096, 65536, (128 << 10) - 1, 128 << 10, 200_001])
def test_crc32c_steps_over_zeros_and_in_lanes_as_bit_by_bit(length: int) -> None:
    data = bytearray(random.Random(length).randbytes(length))
    data[length // 3 : length // 2] = bytes(length // 2 - length // 3)
    table = [crc_of_byte(byte) for byte in range(256)]
    state = 0xFFFFFFFF
    for byte in data:
        state = table[(state ^ byte) & 0xFF] ^ state >> 8
    assert crc32c(data) == state ^ 0xFFFFFFFF


def crc_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


def test_the_header_with_the_higher_number_counts(path: Path) -> None:
    with FileStorage(path) as storage:
        headers = read_headers(storage)
    assert headers[0] is not None
    assert headers[1] is not None
    newer = int(headers[1].sequence_number > headers[0].sequence_number)
    guid = uuid4()
    at = structs.HEADER_OFFSETS[newer]
    patch(path, at + 32, guid.bytes_le, seal=(at, 4096))
    with formats.open(path) as disk:
        assert isinstance(disk, VhdxImage)
        assert disk.data_write_guid == guid
    patch(path, at + 100, b"x")  # its checksum is wrong now
    with formats.open(path) as disk:
        assert isinstance(disk, VhdxImage)
        assert disk.data_write_guid != guid


def test_two_headers_of_one_number_that_differ_are_refused(path: Path) -> None:
    number = (99).to_bytes(8, "little")
    for at in structs.HEADER_OFFSETS:
        patch(path, at + 8, number + uuid4().bytes, seal=(at, 4096))
    with pytest.raises(Corrupt, match="same sequence number"):
        formats.open(path)


def test_a_session_has_identities_of_its_own(path: Path) -> None:
    seen: list[tuple[UUID, UUID]] = []
    for is_written in (False, True, True):
        with formats.open(path, writable=True) as disk:
            assert isinstance(disk, VhdxImage)
            if is_written:
                disk.write(5, b"x")
                disk.write(6, b"y")
            seen.append((disk.header.file_write_guid, disk.data_write_guid))
            assert (disk.header.log_guid == structs.NO_GUID) is True
    assert len({file for file, _ in seen}) == 3
    assert len({data for _, data in seen}) == 3
    with formats.open(path) as disk:
        assert isinstance(disk, VhdxImage)
        assert (disk.header.file_write_guid, disk.data_write_guid) == seen[-1]


def both_headers(offset: int, data: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        for at in structs.HEADER_OFFSETS:
            patch(path, at + offset, data, seal=(at, 4096))

    return damage


def both_tables(offset: int, data: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        for at in structs.REGION_OFFSETS:
            patch(path, at + offset, data, seal=(at, 65536))

    return damage


def metadata(offset: int, data: bytes) -> Callable[[Path], None]:
    return lambda path: patch(path, METADATA_OFFSET + offset, data)


def u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


STRANGER = UUID("01234567-89ab-cdef-0123-456789abcdef")
ITEMS = 64 << 10
"""File parameters 8, disk size 8, disk id 16, logical sector 4, physical sector 4, in this order from here on."""


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (both_headers(66, b"\2\0"), Unsupported, "version 2"),
        (both_headers(48, STRANGER.bytes_le + b"\1\0"), Unsupported, "log version 1"),
        (both_headers(68, u32(4096)), Corrupt, "log length"),
        (both_headers(72, (4096).to_bytes(8, "little")), Corrupt, "log offset"),
        (lambda path: [patch(path, at, b"\0") for at in structs.HEADER_OFFSETS], Corrupt, "header"),
        (lambda path: [patch(path, at, b"\0") for at in structs.REGION_OFFSETS], Corrupt, "region table"),
        (both_tables(8, u32(5000)), Corrupt, "region table entries"),
        (both_tables(16, STRANGER.bytes_le), Unsupported, f"required region {STRANGER}"),
        (both_tables(16, STRANGER.bytes_le + bytes(16)), Corrupt, "offset"),
        (both_tables(32, (1000).to_bytes(8, "little")), Corrupt, "BAT region offset"),
        (both_tables(40, u32(0)), Corrupt, "BAT region length"),
        (both_tables(48, structs.BAT_REGION.bytes_le), Corrupt, "twice"),
        (metadata(0, b"metadatb"), Corrupt, "metadata table"),
        (metadata(10, b"\xff\xff"), Corrupt, "metadata table entries"),
        (metadata(32, STRANGER.bytes_le), Unsupported, f"required metadata item {STRANGER}"),
        (metadata(32 + 16, u32(12)), Corrupt, "file parameters offset"),
        (metadata(32 + 20, u32(MIB)), Corrupt, "file parameters"),
        (metadata(32 + 20, u32(4)), Corrupt, "file parameters length"),
        (metadata(ITEMS, u32(MIB + 1)), Corrupt, "block size"),
        (metadata(ITEMS, u32(512 << 10)), Corrupt, "block size"),
        (metadata(ITEMS + 4, u32(4)), Unsupported, "flags"),
        (metadata(ITEMS + 4, u32(2)), Corrupt, "parent locator"),
        (metadata(ITEMS + 8, (1001).to_bytes(8, "little")), Corrupt, "virtual disk size"),
        (metadata(ITEMS + 8, (1 << 50).to_bytes(8, "little")), Corrupt, "virtual disk size"),
        (metadata(ITEMS + 8, (64 << 40).to_bytes(8, "little")), Corrupt, "BAT region length"),
        (metadata(ITEMS + 32, u32(520)), Corrupt, "logical sector size"),
        (metadata(ITEMS + 36, u32(1)), Corrupt, "physical sector size"),
    ],
)
def test_what_cannot_be_right_is_refused(
    path: Path, damage: Callable[[Path], object], error: type[ImageError], words: str
) -> None:
    damage(path)
    with pytest.raises(error, match=words) as caught:
        formats.open(path)
    assert "\n" not in str(caught.value)


def test_an_optional_region_and_item_are_left_alone(path: Path) -> None:
    """An unknown region that need not be understood keeps its place, and an unknown item its value."""
    content = bytearray(path.read_bytes())
    region_at = len(content)
    content += b"keep" * (MIB // 4)
    entry = STRANGER.bytes_le + region_at.to_bytes(8, "little") + u32(MIB) + u32(0)
    for at in structs.REGION_OFFSETS:
        content[at + 8 : at + 12] = u32(3)
        content[at + 80 : at + 112] = entry
        content[at : at + 65536] = sealed(bytes(content[at : at + 65536]))
    content[METADATA_OFFSET + 10] = 6
    item = STRANGER.bytes_le + u32(ITEMS + 100) + u32(5) + u32(structs.IS_USER_ITEM) + u32(0)
    content[METADATA_OFFSET + 32 * 6 : METADATA_OFFSET + 32 * 7] = item
    content[METADATA_OFFSET + ITEMS + 100 : METADATA_OFFSET + ITEMS + 105] = b"value"
    path.write_bytes(content)
    with formats.open(path, writable=True) as disk:
        disk.write(3 * MIB, b"x" * (4 * MIB))
        disk.resize(20 * MIB)
        disk.write(19 * MIB, b"end")
    assert path.read_bytes()[region_at : region_at + MIB] == b"keep" * (MIB // 4)
    with formats.open(path) as disk:
        assert isinstance(disk, VhdxImage)
        assert [(item.guid, item.data) for item in disk.metadata.others] == [(STRANGER, b"value")]
        assert disk.read(0, 11) == b"first block"
        assert disk.check().exit_status == 0


def test_an_entry_past_the_end_of_the_file_is_no_zeros(path: Path) -> None:
    patch(path, BAT_OFFSET, ((1 << 40) | 6).to_bytes(8, "little"))
    with formats.open(path) as disk:
        with pytest.raises(Corrupt, match="BAT entry of block 0"):
            disk.read(0, 1)
        with pytest.raises(Corrupt, match="BAT entry of block 0"):
            list(disk.map())


@pytest.mark.parametrize("state", [1, 2, 3, 5])
def test_states_without_data_read_as_zeros(path: Path, state: int) -> None:
    """5 is what version 0.95 of the specification had for a block that was unmapped."""
    old = int.from_bytes(path.read_bytes()[BAT_OFFSET : BAT_OFFSET + 8], "little")
    patch(path, BAT_OFFSET, (old & ~7 | state).to_bytes(8, "little"))
    with formats.open(path) as disk:
        assert disk.read(0, 11) == bytes(11)


class TestLog:
    """Which entries count: those that follow one another, the newest run of them, whole ones only."""

    guid = uuid4()

    def writer(self, storage: MemoryStorage | FileStorage) -> LogWriter:
        return LogWriter(storage, LOG_OFFSET, MIB, self.guid)

    def in_use(self, path: Path) -> None:
        both_headers(48, self.guid.bytes_le)(path)

    def entry_of_bat(self, path: Path, block: int, entry: int) -> tuple[int, bytes]:
        """The BAT's first sector with one entry changed."""
        sector = bytearray(path.read_bytes()[BAT_OFFSET : BAT_OFFSET + 4096])
        sector[8 * block : 8 * block + 8] = entry.to_bytes(8, "little")
        return BAT_OFFSET, bytes(sector)

    def test_the_newest_entry_counts(self, path: Path) -> None:
        with FileStorage(path, writable=True) as storage:
            log = self.writer(storage)
            log.append([self.entry_of_bat(path, 0, 0)])
            log.append([self.entry_of_bat(path, 0, 2)])
            log.append([self.entry_of_bat(path, 0, (4 * MIB) | 6)])
        self.in_use(path)
        with formats.open(path) as disk:
            assert disk.read(0, 11) == b"first block"

    def test_a_torn_entry_does_not(self, path: Path) -> None:
        with FileStorage(path, writable=True) as storage:
            log = self.writer(storage)
            log.append([self.entry_of_bat(path, 0, 2)])
            log.append([self.entry_of_bat(path, 0, (4 * MIB) | 6)])
        self.in_use(path)
        patch(path, LOG_OFFSET + 3 * 4096 + 100, b"torn")  # the second entry's data
        with formats.open(path) as disk:
            assert disk.read(0, 11) == bytes(11)

    def test_an_entry_of_another_log_does_not(self, path: Path) -> None:
        with FileStorage(path, writable=True) as storage:
            self.writer(storage).append([self.entry_of_bat(path, 0, 2)])
        both_headers(48, uuid4().bytes_le)(path)
        with formats.open(path) as disk:
            assert disk.read(0, 11) == b"first block"
            assert "holds no whole entry" in disk.describe().notes[0]
            assert disk.check().corruptions == 1

    def test_entries_go_round(self, path: Path) -> None:
        """More of them than the log has room for, of many sectors each, so that some lie across its end."""
        with FileStorage(path, writable=True) as storage:
            log = self.writer(storage)
            for number in range(23):
                sectors = [(BAT_OFFSET + 4096 * at, bytes([number]) * 4096) for at in range(1, 60)]
                log.append([self.entry_of_bat(path, 0, (4 * MIB) | 6), *sectors])
                self.in_use(path)
                with formats.open(path) as disk:
                    assert isinstance(disk, VhdxImage)
                    assert disk.log_waits
                    assert disk.storage.read(BAT_OFFSET + 4096 * 59, 4096) == bytes([number]) * 4096

    def test_a_file_cut_short_is_refused(self, path: Path) -> None:
        with FileStorage(path, writable=True) as storage:
            storage.truncate(9 * MIB)
            self.writer(storage).append([self.entry_of_bat(path, 0, 2)])
            storage.truncate(5 * MIB)
        self.in_use(path)
        with pytest.raises(Corrupt, match="cut short"):
            formats.open(path)

    def test_a_change_outside_the_file_is_refused(self, path: Path) -> None:
        with FileStorage(path, writable=True) as storage:
            self.writer(storage).append([(1 << 50, bytes(4096))])
        self.in_use(path)
        with pytest.raises(Corrupt, match="log"):
            formats.open(path)

    def test_a_hostile_log_costs_one_pass(self, path: Path) -> None:
        """Every sector begins an entry that claims the whole log."""
        head = structs.LOG_ENTRY_HEADER.build(
            {
                "checksum": 0,
                "entry_length": MIB,
                "tail": 0,
                "sequence_number": 1,
                "descriptor_count": 255,
                "reserved": 0,
                "log_guid": self.guid.bytes_le,
                "flushed_file_offset": 0,
                "last_file_offset": 0,
            }
        )
        patch(path, LOG_OFFSET, head.ljust(4096, b"\0") * 256)
        self.in_use(path)
        with formats.open(path) as disk:
            assert disk.read(0, 11) == b"first block"


@pytest.mark.parametrize(
    ("size", "block_bytes"),
    [(1, MIB), (127 << 30, MIB), (200 << 30, 2 * MIB), (1 << 40, 8 * MIB), (2 << 40, 16 * MIB), (64 << 40, 32 * MIB)],
)
def test_blocks_are_as_small_as_the_disk_allows(tmp_path: Path, size: int, block_bytes: int) -> None:
    path = tmp_path / "disk.vhdx"
    formats.create(path, size)
    with formats.open(path) as disk:
        assert isinstance(disk, VhdxImage)
        assert disk.metadata.block_bytes == block_bytes
        assert disk.size == -(-size // 512) * 512
        assert len(list(disk.map())) == 1
        assert path.stat().st_blocks * 512 < disk.metadata.bat_entries * 8 + MIB


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block_size": "3M"}, "block_size"),
        ({"block_size": "512K"}, "block_size"),
        ({"log_size": "512K"}, "log_size"),
        ({"logical_sector_size": "1024"}, "logical_sector_size"),
        ({"subformat": "round"}, "subformat"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: dict[str, str], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        formats.create(tmp_path / "disk.vhdx", MIB, options=options)
    with pytest.raises(OptionError, match="64 TiB"):
        formats.create(tmp_path / "disk.vhdx", 65 << 40)
    assert list(tmp_path.iterdir()) == []
