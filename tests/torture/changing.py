"""What changes images in place: commit, rebase, resize, snapshots, bitmaps, amend."""

from __future__ import annotations

from pathlib import Path

from tests.conformance.image import lay_out
from tests.torture.scenario import Broken, Confirm, Outcome, Scenario, judge_mixture
from tests.torture.shapes import Shape, call, content_of, corruptions, make_overlay, read_all, scribble
from vdisk import formats
from vdisk.errors import Corrupt
from vdisk.maintain import chain


class Commit(Scenario):
    """`vdisk commit`: the base takes what the overlay holds; the overlay reads the same throughout."""

    def __init__(self, shape: Shape) -> None:
        super().__init__("commit", shape)

    def prepare(self, folder: Path) -> None:
        shape, over = self.shape, self.shape.overlay
        base, self.top = self.file(folder, "base"), folder / f"top{self.shape.overlay.suffix}"
        self.old = content_of(7, shape.size)
        lay_out(base, shape.format, shape.options, self.old)
        make_overlay(self.top, base, shape.format, over, shape.size)
        self.wanted = scribble(self.top, over.format, self.old, 8)

    def run(self, folder: Path, confirm: Confirm) -> None:
        call("commit", "--no-progress", "-f", self.shape.overlay.format, self.top)

    def judge(self, folder: Path, outcome: Outcome) -> str:
        base, top, over = self.file(folder, "base"), self.top, self.shape.overlay.format
        found = read_all(base, format=self.shape.format)
        judge_mixture(found, self.wanted if outcome.is_done else self.old, self.wanted)
        self.judge_sound(base)
        word = "in part"
        try:
            view = read_all(top, format=over)
        except Corrupt as error:
            # Its own format's overlays know the base by an identity, which the first write changed.
            if not self.shape.backs_itself or outcome.is_done or "rebase --unsafe" not in str(error):
                raise
            chain.rebase(top, base.name, self.shape.format, unsafe=True)
            view = read_all(top, format=over)
            word = "in part, after rebase --unsafe"
        if view != self.wanted:
            raise Broken("the overlay does not read as before")
        chain.commit(top)
        if read_all(base, format=self.shape.format) != self.wanted or read_all(top, format=over) != self.wanted:
            raise Broken("committing again does not finish it")
        self.judge_sound(base)
        return "done" if outcome.is_done else word


class Rebase(Scenario):
    """`vdisk rebase` to another base, or to none: the disk reads the same throughout."""

    def __init__(self, shape: Shape, *, to_none: bool = False) -> None:
        super().__init__("rebase to nothing" if to_none else "rebase", shape)
        self.to_none = to_none

    def prepare(self, folder: Path) -> None:
        shape, over = self.shape, self.shape.overlay
        self.top = folder / f"top{over.suffix}"
        old = content_of(9, shape.size)
        for name, content in (("base", old), ("other", content_of(10, shape.size))):
            lay_out(self.file(folder, name), shape.format, shape.options, content)
        make_overlay(self.top, self.file(folder, "base"), shape.format, over, shape.size)
        self.wanted = scribble(self.top, over.format, old, 11)
        self.keep(folder, *(path.name for path in folder.iterdir() if path != self.top and "top" not in path.name))

    def run(self, folder: Path, confirm: Confirm) -> None:
        where = ["-b", ""] if self.to_none else ["-b", self.file(folder, "other").name, "-F", self.shape.format]
        call("rebase", "--no-progress", "-f", self.shape.overlay.format, *where, self.top)

    def judge(self, folder: Path, outcome: Outcome) -> str:
        self.judge_kept(folder)
        over = self.shape.overlay.format
        if read_all(self.top, format=over) != self.wanted:
            raise Broken("the overlay does not read as before")
        if corruptions(self.top, over):
            raise Broken("the overlay is corrupt")
        with formats.open(self.top, format=over, backing=False) as disk:
            name = disk.describe().backing_name
        wanted = None if self.to_none else self.file(folder, "other").name
        if outcome.is_done and name != wanted:
            raise Broken(f"the backing file is {name}")
        return "new" if name == wanted else "old"


class Resize(Scenario):
    """`vdisk resize`: the old length or the new one."""

    def __init__(self, shape: Shape, size: int) -> None:
        super().__init__(f"{'grow' if size > shape.size else 'shrink'} to {size}", shape)
        self.size = size
        if shape.name == "vmdk":  # the header counts; a repair makes the descriptor inside the file follow it
            self.may_differ = "descriptor: extent 1"

    def prepare(self, folder: Path) -> None:
        self.old = content_of(12, self.shape.size)
        lay_out(self.file(folder, "disk"), self.shape.format, self.shape.options, self.old)
        self.new = self.old[: self.size].ljust(self.size, b"\0")

    def run(self, folder: Path, confirm: Confirm) -> None:
        call("resize", "--shrink", "-f", self.shape.format, self.file(folder, "disk"), self.size)

    def judge(self, folder: Path, outcome: Outcome) -> str:
        path = self.file(folder, "disk")
        found = self._read(path)
        if found != self.new and (outcome.is_done or found != self.old):
            raise Broken(f"the disk of {len(found)} bytes is neither the old nor the new one")
        self.judge_sound(path)
        call("resize", "--shrink", "-f", self.shape.format, path, self.size)
        if self._read(path) != self.new:
            raise Broken("resizing again does not finish it")
        self.judge_sound(path)
        return "new" if len(found) == self.size else "old"

    def _read(self, path: Path) -> bytes:
        found = read_all(path, format=self.shape.format)
        if self.shape.name == "vhd-fixed":
            # It has one footer, at its end, in the midst of a longer disk: while the size changes, the old one shows
            # among the new zeros, or the new one in what is to be cut off (tests/formats/vhd/test_crash.py).
            for end in (self.shape.size, self.size):
                if found[end : end + 8] == b"conectix":
                    found = found[:end] + self.old[end : end + 512].ljust(512, b"\0") + found[end + 512 :]
        return found


class Snapshot(Scenario):
    """`vdisk snapshot create`, `apply` and `delete` of a qcow2 that has two already."""

    def __init__(self, shape: Shape, what: str) -> None:
        super().__init__(f"snapshot {what}", shape)
        self.what = what

    def prepare(self, folder: Path) -> None:
        from vdisk.formats.qcow2.snapshots import create_snapshot

        path = self.file(folder, "disk")
        content = content_of(13, self.shape.size)
        lay_out(path, "qcow2", self.shape.options, content)
        self.kept: dict[str, bytes] = {}
        for number, name in enumerate(("one", "two")):
            with formats.open(path, writable=True) as disk:
                create_snapshot(disk, name)  # type: ignore[arg-type]
            self.kept[name] = content
            content = scribble(path, "qcow2", content, 14 + number)
        self.now = content

    def run(self, folder: Path, confirm: Confirm) -> None:
        call("snapshot", self.what, self.file(folder, "disk"), "three" if self.what == "create" else "one")

    def judge(self, folder: Path, outcome: Outcome) -> str:
        path = self.file(folder, "disk")
        self.judge_sound(path)
        with formats.open(path, format="qcow2") as disk:
            found = disk.read(0, disk.size)
            snapshots = {}
            for row in disk.describe().snapshots:
                with disk.open_snapshot(row["name"]) as old:
                    snapshots[row["name"]] = old.read(0, old.size)
        new = self.kept["one"] if self.what == "apply" else self.now
        if found != new and (outcome.is_done or found != self.now):
            raise Broken("the disk is neither the old nor the new one")
        kept = dict(self.kept)
        after = dict(kept)
        if self.what == "create":
            after["three"] = self.now
        if self.what == "delete":
            del after["one"]
        if snapshots != after and (outcome.is_done or snapshots != kept):
            raise Broken(f"the snapshots are {', '.join(snapshots)}, or hold something else")
        self.judge_writable(path, 1)
        return "new" if found == new and snapshots == after else "old"


class InPlace(Scenario):
    """A command that changes what a qcow2 is and not what it holds."""

    def __init__(self, shape: Shape, name: str, *words: str) -> None:
        super().__init__(name, shape)
        self.words = words

    def prepare(self, folder: Path) -> None:
        path = self.file(folder, "disk")
        self.content = content_of(17, self.shape.size)
        lay_out(path, "qcow2", self.shape.options, self.content)
        call("bitmap", "add", "--granularity", "4K", path, "old")
        self.content = scribble(path, "qcow2", self.content, 18)

    def run(self, folder: Path, confirm: Confirm) -> None:
        call(*(self.file(folder, "disk") if word == "IMAGE" else word for word in self.words))

    def judge(self, folder: Path, outcome: Outcome) -> str:
        path = self.file(folder, "disk")
        if read_all(path, format="qcow2") != self.content:
            raise Broken("the disk has changed")
        self.judge_sound(path)
        self.judge_writable(path, 1)
        return "done" if outcome.is_done else "in part"
