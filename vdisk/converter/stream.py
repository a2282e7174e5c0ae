"""Converting to a pipe and from one, in bounded memory.

What a format writes in ascending order (raw, streamOptimized VMDK) goes to a pipe as it comes. The others put headers
and tables before data that they do not know yet, so the source is read twice: the first pass lays the image out, keeps
what the writer itself writes (the metadata) and where it gave room, and throws the data away; the second sends
everything in its turn.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from vdisk.block.device import BlockDevice
from vdisk.block.extent import Extent, Kind
from vdisk.converter.engine import Engine, Progress, Work
from vdisk.converter.plan import Action, Plan
from vdisk.converter.wrapped import WrappedWriter
from vdisk.errors import OptionError, StorageError
from vdisk.formats.image import Placement, Writer
from vdisk.storage.base import Buffer, Storage
from vdisk.storage.staging import Staging
from vdisk.storage.stream import InputPipe, OutputPipe

if TYPE_CHECKING:
    from vdisk.formats.image import Backing


class PipeStaging(Staging):
    """The one file of an image that goes to a pipe."""

    def __init__(self, storage: Storage, writer_class: type[Writer]) -> None:
        self.target = Path(f"disk.{writer_class.FORMAT_NAME}")  # what a VMDK calls itself
        self._storage = storage
        self._writer_class = writer_class
        self._is_given = False

    def __enter__(self) -> Self:
        return self  # nothing is replaced

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The writer's options: a VMDK is streamOptimized where nothing else is asked for."""
        return {"subformat": "streamOptimized", **given} if self._writer_class.FORMAT_NAME == "vmdk" else {**given}

    def retire(self, name: str) -> None:
        """Nothing stands where a pipe leads."""

    def make_folder(self) -> None:
        raise OptionError("an image that is a folder cannot go to a pipe")

    def create(self, name: str | None = None, *, device_bytes: int | None = None) -> Storage:
        if name is not None or self._is_given:
            raise OptionError("an image of several files cannot go to a pipe")
        self._is_given = True
        return self._storage

    def commit(self, *, flush: bool | None = None) -> None:
        """Everything has gone already."""

    def rollback(self) -> None:
        """What has gone through a pipe cannot be taken back; whoever reads it sees it end early."""


class DraftStorage(Storage):
    """Keeps what a writer itself writes, headers and tables; the guest's data never comes here."""

    writable = True

    def __init__(self, name: str) -> None:
        self.name = name
        self._size = 0
        self.pieces: list[tuple[int, bytes]] = []
        """(offset, bytes), ascending, none over another."""

    @property
    def size(self) -> int:
        return self._size

    def readinto(self, offset: int, buffer: memoryview) -> int:
        at = bisect_right(self.pieces, offset, key=_start) - 1
        start, data = self.pieces[at] if at >= 0 else (0, b"")
        if offset + len(buffer) > start + len(data):
            raise StorageError(self.name, f"read at {offset}", "a pipe cannot be read back")
        buffer[:] = data[offset - start : offset - start + len(buffer)]
        return len(buffer)

    def write(self, offset: int, data: Buffer) -> None:
        self._forget(offset, offset + len(data))
        at = bisect_right(self.pieces, offset, key=_start)
        self.pieces.insert(at, (offset, bytes(data)))
        self._size = max(self._size, offset + len(data))

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._forget(offset, offset + length)
        self._size = max(self._size, offset + length)

    def truncate(self, size: int) -> None:
        if size < self._size:
            self._forget(size, self._size)
        self._size = size

    def flush(self) -> None:
        """There is nothing to flush."""

    def close(self) -> None:
        """There is nothing to close."""

    def _forget(self, start: int, end: int) -> None:
        """Take [start, end) out of the pieces."""
        first = bisect_right(self.pieces, start, key=_start)
        if first and start < self.pieces[first - 1][0] + len(self.pieces[first - 1][1]):
            first -= 1
        last = first
        while last < len(self.pieces) and self.pieces[last][0] < end:
            last += 1
        rest = []
        for at, data in self.pieces[first:last]:
            if at < start:
                rest.append((at, data[: start - at]))
            if at + len(data) > end:
                rest.append((end, data[end - at :]))
        self.pieces[first:last] = rest


def _start(piece: tuple[int, bytes]) -> int:
    return piece[0]


class _Nowhere(DraftStorage):
    """Takes the guest's data of the first pass, and forgets it."""

    def write(self, offset: int, data: Buffer) -> None:
        pass


class _Draft(WrappedWriter):
    """The first pass: notes where the writer gives room, and lets no data through."""

    def __init__(self, inner: Writer, storage: DraftStorage) -> None:
        super().__init__(inner)
        self._storage = storage
        self._nowhere = _Nowhere(storage.name)
        # Guest offset, length, host offset, three words each; of compressed units the payload's length.
        self.placed, self.encoded = array("Q"), array("Q")

    def place(self, offset: int, length: int) -> Iterator[Placement]:
        placed = self.placed
        for place in self.inner.place(offset, length):
            self._expect(place.storage)
            if placed and placed[-3] + placed[-2] == place.offset and placed[-1] + placed[-2] == place.host:
                placed[-2] += place.length
            else:
                placed.extend((place.offset, place.length, place.host))
            yield place._replace(storage=self._nowhere)

    def place_encoded(self, offset: int, payload: Buffer) -> tuple[Storage, int, Buffer]:
        storage, host, framed = self.inner.place_encoded(offset, payload)
        self._expect(storage)
        if framed is not payload:
            raise OptionError(f"{self.FORMAT_NAME}: cannot be compressed on its way to a pipe")
        self.encoded.extend((offset, len(payload), host))
        return self._nowhere, host, b""

    def _expect(self, storage: Storage) -> None:
        if storage is not self._storage:
            raise OptionError(f"{self.FORMAT_NAME}: with these options it cannot go to a pipe")


class _Replay(WrappedWriter):
    """The second pass: gives the room that the first one noted."""

    def __init__(self, draft: _Draft, pipe: OutputPipe, source_name: str) -> None:
        super().__init__(draft.inner)
        self._draft = draft
        self._pipe = pipe
        self._source_name = source_name
        self._at_placed = self._at_encoded = 0

    def place(self, offset: int, length: int) -> Iterator[Placement]:
        placed = self._draft.placed
        while length:
            while self._at_placed < len(placed) and placed[self._at_placed] + placed[self._at_placed + 1] <= offset:
                self._at_placed += 3
            if self._at_placed == len(placed) or placed[self._at_placed] > offset:
                raise self._changed()
            start, count, host = placed[self._at_placed : self._at_placed + 3]
            part = min(length, start + count - offset)
            yield Placement(offset, part, self._pipe, host + offset - start)
            offset += part
            length -= part

    def place_encoded(self, offset: int, payload: Buffer) -> tuple[Storage, int, Buffer]:
        encoded = self._draft.encoded
        while self._at_encoded < len(encoded) and encoded[self._at_encoded] < offset:
            self._at_encoded += 3
        if encoded[self._at_encoded : self._at_encoded + 2] != array("Q", (offset, len(payload))):
            raise self._changed()
        return self._pipe, encoded[self._at_encoded + 2], payload

    def _changed(self) -> StorageError:
        return StorageError(self._source_name, "read", "changed while it was read: the two passes differ")

    def zero(self, offset: int, length: int) -> None:
        """The tables of the first pass say it."""

    def finish(self) -> None:
        """The tables of the first pass go out in their turn."""


def to_pipe(
    source: BlockDevice,
    writer_class: type[Writer],
    pipe: OutputPipe,
    options: Mapping[str, Any],
    *,
    compress: bool,
    backing: Backing | None,
    threads: int,
    progress: Progress | None,
    dry_run: bool,
) -> tuple[Plan, int]:
    """Send `source` through `pipe` in the format of `writer_class`; returns the plan and the guest bytes sent.

    A VMDK is streamOptimized where nothing else is asked for. Raises `OptionError` for what a pipe cannot take (several
    files, encryption), before anything is sent.
    """
    from vdisk.converter.plan import make_plan

    draft_storage = DraftStorage(pipe.name)
    staging = PipeStaging(draft_storage, writer_class)
    options = staging.options(options)
    # The first writer says how the image will be made, and checks the options before a byte is gone.
    inner = writer_class(staging, source.size, options, compress=compress, backing=backing)
    plan = make_plan(source, inner)
    if dry_run:
        return plan, 0
    if inner.ascends:
        staging = PipeStaging(pipe, writer_class)
        inner = writer_class(staging, source.size, options, compress=compress, backing=backing)
        engine = Engine(source, inner, plan, threads, progress)
        engine.run()
        inner.finish()
        return plan, engine.written_bytes
    draft = _Draft(inner, draft_storage)
    total = plan.work_bytes
    first = None if progress is None else lambda done, _: progress(done, 2 * total)
    second = None if progress is None else lambda done, _: progress(total + done, 2 * total)
    Engine(source, draft, plan, threads, first).run()
    draft.finish()
    pipe.promise(draft_storage.pieces)
    engine = Engine(source, _Replay(draft, pipe, source.name), plan, threads, second)
    engine.run()
    pipe.truncate(draft_storage.size)
    return plan, engine.written_bytes


class _PipeDevice(BlockDevice):
    """A raw disk as it comes out of a pipe: read once, in order."""

    def __init__(self, pipe: InputPipe) -> None:
        super().__init__(pipe.name, pipe.size or 0)
        self.pipe = pipe

    def _extents(self, offset: int, length: int) -> Iterable[Extent]:
        return (Extent(offset, length, Kind.DATA),)

    def _readinto(self, offset: int, view: memoryview) -> None:
        if offset != self.pipe.position:
            raise StorageError(self.name, f"read at {offset}", f"a pipe stands at {self.pipe.position}")
        self.pipe.fill(view)


class _PipeEngine(Engine):
    """One thread reads, in order; the others look for zeros and compress."""

    def __init__(self, pipe: InputPipe, writer: Writer, plan: Plan, threads: int, progress: Progress | None) -> None:
        super().__init__(_PipeDevice(pipe), writer, plan, threads, progress)
        self._pipe = pipe

    def _pieces(self) -> Iterator[tuple[Work, int, int, bytearray]]:
        pipe, work = self._pipe, self._work_for(Action.READ)
        length = piece_bytes = self._piece_bytes
        while length == piece_bytes:
            start = pipe.position
            if pipe.size is not None:
                piece_bytes = min(self._piece_bytes, pipe.size - start)
            buffer = self._buffer()
            length = pipe.fill(memoryview(buffer)[:piece_bytes]) if piece_bytes else 0
            if not length:
                break
            if pipe.size is None:
                self._writer.lengthen(start + length)
            yield work, start, length, buffer

    def _fill(self, start: int, length: int, buffer: bytearray) -> None:
        """The buffer came filled."""


def from_pipe(pipe: InputPipe, writer: Writer, threads: int, progress: Progress | None) -> tuple[Plan, int]:
    """Send a raw disk out of `pipe` to `writer`, which is finished; returns the plan and the guest bytes written.

    Where the pipe's size is known it has to be that: fewer bytes or more are a `StorageError`.
    """
    plan = Plan()
    if pipe.size:
        plan.add(Action.READ, 0, pipe.size)
    engine = _PipeEngine(pipe, writer, plan, threads, progress)
    engine.run()
    if pipe.size is None:
        plan.add(Action.READ, 0, pipe.position)
    elif pipe.position < pipe.size:
        raise StorageError(pipe.name, f"read at {pipe.position}", f"ends before the {pipe.size} bytes it should have")
    elif pipe.fill(memoryview(bytearray(1))):
        raise StorageError(pipe.name, f"read at {pipe.size}", f"has more than the {pipe.size} bytes it should have")
    writer.finish()
    return plan, engine.written_bytes


__all__ = ["DraftStorage", "PipeStaging", "from_pipe", "to_pipe"]
