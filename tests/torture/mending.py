"""Repairs of damaged images, which the fuzzer's mutations are."""

from __future__ import annotations

import contextlib
import functools
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy

from tests.hostile.bases import Base, bases
from tests.hostile.mutate import scattered, structured
from tests.torture.scenario import Broken, Confirm, Outcome, Scenario
from tests.torture.shapes import Shape, call, corruptions, read_all
from vdisk import formats
from vdisk.block.device import BlockDevice
from vdisk.errors import VdiskError
from vdisk.formats.check import Repair
from vdisk.storage.memory import MemoryStorage

_PIECE_BYTES = 4096
_OF_EACH_BASE = 3
_LARGEST_DISK_BYTES = 4 << 20


class Mend(Scenario):
    """`vdisk check --repair all` of a damaged image: what could be read stays, and a second repair finishes it."""

    starts_sound = False

    def __init__(self, shape: Shape, number: int) -> None:
        super().__init__(f"repair {number}", shape)
        self.number = number

    def prepare(self, folder: Path) -> None:
        path = self.file(folder, "disk")
        self.what, data = damaged(self.shape.format)[self.number]
        path.write_bytes(data)
        self.before, self.is_known = _readable_at(path, self.shape.format)
        self.corruptions = corruptions(path, self.shape.format)
        self._repair(path)
        self.after = read_all(path, format=self.shape.format)
        path.write_bytes(data)

    def _repair(self, path: Path) -> int:
        with formats.open(path, format=self.shape.format, writable=True, backing=False) as disk:
            return disk.check(Repair.ALL).exit_status

    def run(self, folder: Path, confirm: Confirm) -> None:
        call("check", "--repair", "all", "-f", self.shape.format, self.file(folder, "disk"))

    def judge(self, folder: Path, outcome: Outcome) -> str:
        path = self.file(folder, "disk")
        found, is_known = _readable_at(path, self.shape.format)
        if len(found) != len(self.before):
            raise Broken(f"{self.what}: the disk has {len(found)} bytes")
        now, old, new = (numpy.frombuffer(data, numpy.uint8) for data in (found, self.before, self.after))
        good = (now == new) | (~_mask(is_known)) | ((now == old) & _mask(self.is_known))
        good &= _mask(is_known) | ~_mask(self.is_known)
        if not good.all():
            raise Broken(f"{self.what}: byte {int(numpy.flatnonzero(~good)[0])} is lost by a repair cut short")
        self.judge_sound(path, 0 if outcome.is_done else self.corruptions)
        if self._repair(path):
            raise Broken(f"{self.what}: a second repair does not finish it")
        if read_all(path, format=self.shape.format) != self.after:
            raise Broken(f"{self.what}: a repair in two goes comes to another disk")
        return "done" if outcome.is_done else "in part"


def _mask(known: bytes) -> Any:
    """Bytes of 0 and 1 as booleans."""
    return numpy.frombuffer(known, numpy.bool_)


def _readable(disk: BlockDevice) -> tuple[bytes, bytes]:
    """The disk, and a byte for each of its bytes: 1 where it can be read."""
    content, known = bytearray(disk.size), bytearray(disk.size)
    for start in range(0, disk.size, _PIECE_BYTES):
        length = min(_PIECE_BYTES, disk.size - start)
        with contextlib.suppress(VdiskError):
            content[start : start + length] = disk.read(start, length)
            known[start : start + length] = b"\1" * length
    return bytes(content), bytes(known)


def _readable_at(path: Path, format: str) -> tuple[bytes, bytes]:
    with formats.open(path, format=format, backing=False) as disk:
        return _readable(disk)


@functools.cache
def damaged(format: str) -> list[tuple[str, bytes]]:
    """(what was done, image): damaged images that a repair mends to the end, taken from the fuzzer's."""
    found: list[tuple[str, bytes]] = []
    with tempfile.TemporaryDirectory() as folder:
        for base in bases(Path(folder)):
            if base.format != format or base.is_text:
                continue
            of_this = 0
            for what, data in _mutations(base):
                if of_this < _OF_EACH_BASE and _is_mendable(data, format):
                    found.append((f"{base.name}: {what}", bytes(data)))
                    of_this += 1
    return found


def _mutations(base: Base) -> Iterator[tuple[str, bytearray]]:
    for seed in range(60):
        yield scattered(base, seed)
    every = list(structured(base)) if len(base.data) < 1 << 20 else []
    yield from random.Random(1).sample(every, min(len(every), 100))


def _is_mendable(data: bytearray, format: str) -> bool:
    """Opens, is found wrong, and is right after a repair."""
    try:
        storage = MemoryStorage(data)
        with formats.open(storage, format=format, writable=True, backing=False) as disk:
            if disk.size > _LARGEST_DISK_BYTES:
                return False
            before, is_known = _readable(disk)
            report = disk.check(Repair.ALL)
            if not report.corruptions_fixed + report.leaks_fixed or report.exit_status:
                return False
        with formats.open(MemoryStorage(storage.data), format=format, backing=False) as disk:
            after = disk.read(0, disk.size)
            # Where tables are taken for data, mending the tables changes the data.
            is_kept = len(after) == len(before) and all(
                after[start : start + _PIECE_BYTES] == before[start : start + _PIECE_BYTES]
                for start in range(0, len(after), _PIECE_BYTES)
                if is_known[start]
            )
            return is_kept and not disk.check().exit_status
    except VdiskError:
        return False
