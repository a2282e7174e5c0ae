"""What lies at a byte of a disk, by its partition table and file systems, in words."""

from __future__ import annotations

import struct

import pytest

from tests.hv.guests import disk_of
from vdisk.errors import StorageError
from vdisk.inspect.places import Places

MIB = 1 << 20
SWAP, EXT2 = 2 * MIB, 1 * MIB


def partitioned() -> bytearray:
    """An MBR, an ext2 superblock in partition 1 (1 MiB to 2 MiB), nothing known in partition 2 (2 MiB to 3 MiB)."""
    content = bytearray(4 * MIB)
    for number, (kind, start) in enumerate([(0x83, EXT2), (0x82, SWAP)]):
        struct.pack_into("<B3xB3xII", content, 446 + 16 * number, 0, kind, start // 512, MIB // 512)
    content[510:512] = b"\x55\xaa"
    struct.pack_into("<H", content, EXT2 + 1024 + 56, 0xEF53)
    return content


@pytest.mark.parametrize(
    ("offset", "place"),
    [
        (0, "the boot sector"),
        (511, "the boot sector"),
        (512, "the gap before partition 1"),
        (EXT2, "partition 1 (ext2)"),
        (SWAP - 1, "partition 1 (ext2)"),
        (SWAP, "partition 2 (Linux swap)"),
        (3 * MIB, "the space behind the last partition"),
        (4 * MIB, "what lies past the end"),
    ],
)
def test_a_place_on_a_partitioned_disk(offset: int, place: str) -> None:
    assert Places().name_of(disk_of(bytes(partitioned()), 4 * MIB), offset) == place


def test_a_disk_without_partitions() -> None:
    assert Places().name_of(disk_of(b""), 4096) == "a disk without partitions"
    content = bytearray(MIB)
    struct.pack_into("<H", content, 1024 + 56, 0xEF53)
    assert Places().name_of(disk_of(bytes(content)), 4096) == "the whole disk's file system (ext2)"


def test_a_partition_that_reaches_past_the_end_is_told_all_the_same() -> None:
    assert (
        Places().name_of(disk_of(bytes(partitioned()[: 3 * MIB - 512]), 3 * MIB - 512), SWAP)
        == "partition 2 (Linux swap)"
    )


def test_an_unreadable_disk_has_no_places(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = disk_of(b"")

    def refuse(*_: object) -> None:
        raise StorageError("disk", "read", OSError(5, "Input/output error"))

    monkeypatch.setattr(disk, "read", refuse)
    assert Places().name_of(disk, 0) is None
