"""Writing to images, and converting to them."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy

from tests.conformance.image import lay_out
from tests.torture.scenario import Broken, Confirm, Outcome, Scenario, judge_mixture
from tests.torture.shapes import Shape, call, content_of, make_overlay, read_all
from vdisk import formats


class Write(Scenario):
    """Writes, zeros and flushes through the library."""

    is_library = True

    def __init__(self, shape: Shape, *, is_child: bool = False) -> None:
        super().__init__("write to an overlay" if is_child else "write", shape)
        self.is_child = is_child

    def prepare(self, folder: Path) -> None:
        shape = self.shape
        path = self.file(folder, "disk")
        content = content_of(1, shape.size)
        if self.is_child:
            lay_out(self.file(folder, "base"), shape.format, shape.options, content)
            make_overlay(path, self.file(folder, "base"), shape.format, shape, shape.size)
        else:
            lay_out(path, shape.format, shape.options, content)
        maker = random.Random(2)
        self.steps: list[tuple[int, bytes, bool]] = []
        """(offset, bytes, written as zeros)."""
        for _ in range(24):
            offset = maker.randrange(shape.size)
            length = min(maker.choice([1, 512, 4096, maker.randrange(1, 50_000)]), shape.size - offset)
            is_zero = maker.random() < 0.2
            self.steps.append((offset, bytes(length) if is_zero else maker.randbytes(length), is_zero))
        self.states = [content]
        for offset, data, _ in self.steps:
            now = bytearray(self.states[-1])
            now[offset : offset + len(data)] = data
            self.states.append(bytes(now))
        self.keep(folder, *([self.file(folder, "base").name] if self.is_child else []))

    def run(self, folder: Path, confirm: Confirm) -> None:
        with formats.open(self.file(folder, "disk"), format=self.shape.format, writable=True) as disk:
            for number, (offset, data, is_zero) in enumerate(self.steps, 1):
                if is_zero:
                    disk.write_zeroes(offset, len(data))
                else:
                    disk.write(offset, data)
                if number % 4 == 0:
                    disk.flush()
                    confirm(number)

    def judge(self, folder: Path, outcome: Outcome) -> str:
        path = self.file(folder, "disk")
        self.judge_kept(folder)
        found = numpy.frombuffer(read_all(path, format=self.shape.format), numpy.uint8)
        safe = len(self.steps) if outcome.is_done else outcome.confirmed
        if len(found) != self.shape.size:
            raise Broken(f"the disk has {len(found)} bytes")
        good = found == numpy.frombuffer(self.states[safe], numpy.uint8)
        for offset, data, _ in self.steps[safe:]:
            part = slice(offset, offset + len(data))
            good[part] |= found[part] == numpy.frombuffer(data, numpy.uint8)
        if not good.all():
            at = int(numpy.flatnonzero(~good)[0])
            raise Broken(f"byte {at} is neither what was flushed (step {safe}) nor what was written since")
        self.judge_sound(path)
        self.judge_writable(path, safe)
        return f"{safe} steps"


class WriteInput(Scenario):
    """`vdisk write`: standard input into the disk."""

    def __init__(self, shape: Shape) -> None:
        super().__init__("write standard input", shape)

    def prepare(self, folder: Path) -> None:
        size = self.shape.size
        self.old = content_of(3, size)
        self.data = random.Random(4).randbytes(size // 2)
        self.offset = size // 4
        lay_out(self.file(folder, "disk"), self.shape.format, self.shape.options, self.old)
        (folder / "input").write_bytes(self.data)
        self.keep(folder, "input")

    def run(self, folder: Path, confirm: Confirm) -> None:
        with open(folder / "input") as sys.stdin:
            call("write", "-f", self.shape.format, self.file(folder, "disk"), "--offset", self.offset)

    def judge(self, folder: Path, outcome: Outcome) -> str:
        path = self.file(folder, "disk")
        self.judge_kept(folder)
        new = self.old[: self.offset] + self.data + self.old[self.offset + len(self.data) :]
        judge_mixture(read_all(path, format=self.shape.format), new if outcome.is_done else self.old, new)
        self.judge_sound(path)
        self.judge_writable(path, 1)
        return "done" if outcome.is_done else "in part"


class Convert(Scenario):
    """`vdisk convert` to a new name, or over an image of the same format."""

    def __init__(self, shape: Shape, *, over: bool, compress: bool = False, more: tuple[str, ...] = ()) -> None:
        what = "convert over an image" if over else "convert"
        super().__init__(what + (" with compression" if compress else ""), shape)
        self.over = over
        self.more = ("-c", *more) if compress else more

    def prepare(self, folder: Path) -> None:
        self.source = "source.qcow2" if self.shape.format == "raw" else "source.raw"
        self.size = max(self.shape.size, 1 << 20) + 512
        self.old, self.new = content_of(5, self.shape.size), content_of(6, self.size)
        lay_out(folder / self.source, self.source[7:], {}, self.new)
        self.keep(folder, self.source)
        target = self.file(folder, "target")
        if self.over:
            lay_out(target, self.shape.format, self.shape.options, self.old)
        self.names_before = {path.name for path in folder.iterdir()}
        start = {path: path.read_bytes() for path in folder.iterdir()}
        lay_out(target, self.shape.format, self.shape.options, self.new)
        self.names_after = {path.name for path in folder.iterdir()}
        for path in folder.iterdir():
            path.unlink()
        for path, data in start.items():
            path.write_bytes(data)

    def run(self, folder: Path, confirm: Confirm) -> None:
        options = [word for key, value in self.shape.options.items() for word in ("-o", f"{key}={value}")]
        target = self.file(folder, "target")
        options += ["-f", self.source[7:], "-O", self.shape.format]  # a format that is guessed is told in one line more
        call("convert", "--no-progress", *self.more, *options, folder / self.source, target)

    def judge(self, folder: Path, outcome: Outcome) -> str:
        self.judge_kept(folder)
        word = self._state(self.file(folder, "target"), outcome)
        known = self.names_after if word == "new" else self.names_before
        if outcome.may_leave_temporary:
            known = self.names_before | self.names_after
        self.judge_leftovers(folder, known, outcome)
        return word

    def _state(self, target: Path, outcome: Outcome) -> str:
        if not target.exists():
            if self.over or outcome.is_done:
                raise Broken("the target is gone")
            return "none"
        found = read_all(target, format=self.shape.format)
        self.judge_sound(target)
        if found == self.new:
            return "new"
        if self.over and not outcome.is_done and found == self.old:
            return "old"
        raise Broken(f"the target of {len(found)} bytes is neither the old nor the new disk")
