"""Partition tables made by sfdisk read as sfdisk says; damaged ones are told, not raised."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import pytest

from tests.peers import run
from vdisk import formats
from vdisk.block.filters import Window
from vdisk.block.overlay import Overlay
from vdisk.inspect.partitions import PartitionTable, read_partitions

SIZE = 64 << 20


def partitioned(path: Path, script: str) -> Path:
    with path.open("wb") as file:
        file.truncate(SIZE)
    run("sfdisk", "-q", path, stdin=script.encode())
    return path


def table_of(path: Path) -> PartitionTable:
    with formats.open(path, format="raw") as disk:
        return read_partitions(disk)


def sfdisk_says(path: Path) -> list[tuple[int, int]]:
    rows = json.loads(run("sfdisk", "--json", path).stdout)["partitiontable"]["partitions"]
    return [(row["start"] * 512, row["size"] * 512) for row in rows if row["type"] not in ("5", "f")]


MBR = "label: dos\nsize=8M,type=83,bootable\nsize=8M,type=82\nsize=24M,type=5\n5: size=4M,type=83\n6: size=4M,type=8e\n"
GPT = "label: gpt\nsize=8M,type=U\nsize=4M,type=21686148-6449-6E6F-744E-656564454649\nsize=16M,type=L,name=root\n"


@pytest.mark.peer
def test_an_mbr_with_logical_partitions(tmp_path: Path) -> None:
    path = partitioned(tmp_path / "disk", MBR)
    table = table_of(path)
    assert table.kind == "mbr"
    assert [(p.start, p.length) for p in table.partitions] == sfdisk_says(path)
    assert [(p.number, p.type_name, p.is_active) for p in table.partitions] == [
        (1, "Linux", True), (2, "Linux swap", False), (5, "Linux", False), (6, "Linux LVM", False),
    ]  # fmt: skip
    assert table.problems == []


@pytest.mark.peer
def test_a_gpt_with_its_backup(tmp_path: Path) -> None:
    path = partitioned(tmp_path / "disk", GPT)
    table = table_of(path)
    assert (table.kind, table.backup_gpt, table.problems) == ("gpt", "ok", [])
    assert [(p.start, p.length) for p in table.partitions] == sfdisk_says(path)
    assert [p.type_name for p in table.partitions] == ["EFI system", "BIOS boot", "Linux"]
    assert table.partitions[2].name == "root"


@pytest.mark.peer
def test_a_hybrid_table_names_a_partition_in_the_mbr_too(tmp_path: Path) -> None:
    path = partitioned(tmp_path / "disk", GPT)
    with path.open("r+b") as file:
        file.seek(446 + 16)
        file.write(struct.pack("<B3xB3xII", 0x80, 0x83, 2048, 2048))
    table = table_of(path)
    assert (table.kind, table.backup_gpt) == ("hybrid", "ok")
    assert [p.type_name for p in table.partitions] == ["EFI system", "BIOS boot", "Linux"]


@pytest.mark.peer
def test_a_grown_disk_has_its_backup_gpt_in_the_wrong_place(tmp_path: Path) -> None:
    path = partitioned(tmp_path / "disk", GPT)
    with path.open("r+b") as file:
        file.truncate(SIZE + (1 << 20))
    table = table_of(path)
    assert table.backup_gpt == "missing"
    assert len(table.partitions) == 3
    assert "the backup GPT belongs at sector" in table.problems[0]


@pytest.mark.peer
def test_a_lost_primary_gpt_is_read_from_the_backup(tmp_path: Path) -> None:
    path = partitioned(tmp_path / "disk", GPT)
    with path.open("r+b") as file:
        file.seek(512 + 16)
        file.write(b"\xff\xff")
    table = table_of(path)
    assert "the primary GPT header is damaged" in table.problems
    assert len(table.partitions) == 3


def test_no_table_at_all(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    for data in (b"", b"x" * 100, bytes(4096)):
        path.write_bytes(data)
        assert table_of(path).kind == "none"


@pytest.mark.peer
@pytest.mark.parametrize("script", [MBR, GPT])
def test_damage_is_told_and_never_raised(tmp_path: Path, script: str) -> None:
    path = partitioned(tmp_path / "disk", script)
    maker = random.Random(7)
    with formats.open(path, format="raw") as disk:
        for _ in range(200):
            changed = Overlay(disk)
            at = maker.choice(
                [maker.randrange(440, 512), maker.randrange(512, 1700), (17 << 20) + maker.randrange(512)]
            )
            changed.write(at, maker.choice([b"\xff" * 4, bytes(4), maker.randbytes(4)]))
            read_partitions(changed)
            read_partitions(Window(changed, 0, maker.randrange(20 << 20)))
