"""Conversions that can be gone on with: `vdisk convert --resume`.

Beside the target stands a folder with its files so far and a journal (`vdisk.converter.journal`). From time to time the
files are flushed, and then a block of the journal notes what is safe: where the writer gave room, and the offset of
the disk before which all is done. The work goes on meanwhile. A writer's state is in memory only, so a later run asks
a new writer for the same room in the same order, holds what it gives against the journal, and moves no data. All of
the files that the journal does not name is made zeros first: they are then as if the interrupted run had written
nothing after its last block.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from vdisk import __version__
from vdisk.block.workers import Answer, Workers
from vdisk.converter.engine import Engine, Progress
from vdisk.converter.journal import ENCODED, PLACED, SIZED, ZEROED, Fields, Journal, Record
from vdisk.converter.plan import Plan, make_plan
from vdisk.converter.wrapped import WrappedWriter
from vdisk.errors import ImageError, StorageError, Unsupported, VdiskError
from vdisk.formats.options import parse_options
from vdisk.ova.window import WindowStorage
from vdisk.storage.kept import START_OVER, KeptFile, KeptStaging

if TYPE_CHECKING:
    from vdisk.block.device import BlockDevice
    from vdisk.formats.image import Backing, Placement, Writer
    from vdisk.storage.base import Buffer, Storage

FLUSH_SECONDS = 5.0
"""From one flush of the target to the next: so much work is lost at most, where flushing is quick."""
_FLUSH_SHARE = 10
"""A flush that takes long is followed by so many times its length without one."""
_JOURNAL_NAME = "journal"


class Resumed(NamedTuple):
    """What a conversion did, and what an earlier run had done. In bytes of the disk."""

    plan: Plan
    written_bytes: int
    resumed_bytes: int
    """Of what the plan has to look at."""


def fields_of(
    source: str | os.PathLike[str],
    files: Iterable[str],
    writer_class: type[Writer],
    options: Mapping[str, Any],
    how: Fields,
) -> dict[str, str | int | bool | None]:
    """All that decides what a conversion's target holds: a later run must be the same in every field.

    `files` are those that the source, and what is behind the target, are read from; `how` what else was asked for.
    Raises `Unsupported` for a source of which it cannot be told whether it has changed.
    """
    fields: dict[str, str | int | bool | None] = {"version of vdisk": __version__, "source": os.path.abspath(source)}
    fields |= how
    for name, value in sorted(parse_options(writer_class.FORMAT_NAME, writer_class.OPTIONS, options).items()):
        fields[f"option {name}"] = value
    for name in files:
        if name.startswith(f"{os.fspath(source)}:"):  # a file in a package
            continue
        try:
            status = os.stat(name)
        except OSError as error:
            raise StorageError(name, "stat", error) from error
        if not stat.S_ISREG(status.st_mode):
            raise Unsupported(name, "resume", "a source that is a device: it does not tell whether it has changed")
        path = os.path.abspath(name)
        fields[f"length of {path}"] = status.st_size
        fields[f"time of the last change of {path}, in ns"] = status.st_mtime_ns
    return fields


class _RecordingWriter(WrappedWriter):
    """Notes what it is asked for, and can ask the writer behind it again for what a journal has."""

    def __init__(self, inner: Writer, staging: KeptStaging, journal: Journal, disk_bytes: int) -> None:
        super().__init__(inner)
        self._journal = journal
        self._disk_bytes = disk_bytes
        self._places = {id(storage): (number, 0) for number, storage in enumerate(staging.storages)}
        self._storages = staging.storages
        self._nothing = memoryview(bytes(0 if inner.codec is None else 2 * inner.unit_bytes))
        self._open: list[Record] = []
        """Of the piece that is being stored."""
        self._stored: list[tuple[int, list[Record]]] = []
        """Where each piece that is stored, and in no block of the journal yet, ends on the disk, and its records."""
        self.replayed_bytes = 0
        """Bytes of the disk that the target held when it was gone on with."""
        self._data_end = self._zeroed_end = 0

    # Recording ---------------------------------------------------------------------------------------------------

    def place(self, offset: int, length: int) -> Iterator[Placement]:
        for place in self.inner.place(offset, length):
            file, base = self._file_of(place.storage)
            self._open.append(Record(PLACED, file, place.offset, place.length, base + place.host))
            yield place

    def place_encoded(self, offset: int, payload: Buffer) -> tuple[Storage, int, Buffer]:
        storage, host, framed = self.inner.place_encoded(offset, payload)
        file, base = self._file_of(storage)
        record = Record(ENCODED, file, offset, len(framed), base + host)
        record.payload_bytes.append(len(payload))
        self._open.append(record)
        return storage, host, framed

    def zero(self, offset: int, length: int) -> None:
        self.inner.zero(offset, length)
        self._open.append(Record(ZEROED, guest_offset=offset, length=length))

    def settle(self, position: int) -> None:
        """All that was asked for so far has been written, and all before `position` is done.

        An interrupt may come in at any point: it is noted in one step.
        """
        records = self._joined(self._open)
        for file in {record.file for record in records if record.kind != ZEROED}:
            records.append(Record(SIZED, file, length=self._storages[file].size))
        self._stored.append((position, records))
        self._open = []

    @property
    def is_ahead(self) -> bool:
        """Whether there is something that `take` has not given yet."""
        return bool(self._stored)

    def take(self) -> tuple[int, list[Record]]:
        """What has been stored since the last call: the offset before which all is done, and the records."""
        stored, self._stored = self._stored, []
        sizes: dict[int, Record] = {}
        others: list[Record] = []
        for record in (record for _, records in stored for record in records):
            if record.kind == SIZED:
                sizes[record.file] = record
            else:
                others.append(record)
        return stored[-1][0], [*self._joined(others), *sizes.values()]

    def _joined(self, records: Iterable[Record]) -> list[Record]:
        joined: list[Record] = []
        for record in records:
            if not joined or not joined[-1].takes(record, self.unit_bytes):
                joined.append(record)
        return joined

    def _file_of(self, storage: Storage) -> tuple[int, int]:
        """The number of the file that a storage is, or is a part of, and where in it the storage begins."""
        place = self._places.get(id(storage))
        if place is None:
            if not isinstance(storage, WindowStorage) or id(storage.base) not in self._places:
                raise Unsupported(storage.name, self.FORMAT_NAME, "--resume with these options")
            place = self._places[id(storage)] = (self._places[id(storage.base)][0], storage.start)
        return place

    # Replaying ---------------------------------------------------------------------------------------------------

    def replay(self) -> int:
        """Ask for all that the journal has; returns the offset of the disk before which all is done."""
        position = 0
        for block in self._journal.blocks():
            position = block.position
            if position > self._disk_bytes or (position % self.unit_bytes and position != self._disk_bytes):
                raise self._journal.damaged(f"an end of {position} on a disk of {self._disk_bytes} bytes")
            for record in block.records:
                if record.kind != SIZED:
                    self._replay(record, position)
        return position

    def _replay(self, record: Record, end: int) -> None:
        offset, unit = record.guest_offset, self.unit_bytes
        guest_bytes = len(record.payload_bytes) * unit if record.kind == ENCODED else record.length
        reached = self._zeroed_end if record.kind == ZEROED else self._data_end
        last = -(-end // unit) * unit if record.kind == ENCODED else end
        if offset % unit or offset < reached or offset + guest_bytes > last or not record.length:
            raise self._journal.damaged(f"a record of {guest_bytes} bytes at {offset} of the disk")
        if record.kind == ZEROED:
            if self.backing is None:
                raise self._journal.damaged("zeros, although there is no backing file")
            self._zeroed_end = offset + guest_bytes
            self.inner.zero(offset, guest_bytes)
            return
        self._data_end = offset + guest_bytes
        self.replayed_bytes += min(offset + guest_bytes, self._disk_bytes) - offset
        if record.kind == PLACED:
            self._replay_placed(record)
        else:
            self._replay_encoded(record)

    def _replay_placed(self, record: Record) -> None:
        offset, host = record.guest_offset, record.host_offset
        if self.must_encode:
            raise self._journal.damaged("room for what is not compressed")
        for place in self.inner.place(offset, record.length):
            file, base = self._file_of(place.storage)
            if (place.offset, file, base + place.host) != (offset, record.file, host):
                raise self._elsewhere(offset)
            offset += place.length
            host += place.length
        if offset != record.guest_offset + record.length:
            raise self._elsewhere(offset)

    def _replay_encoded(self, record: Record) -> None:
        offset, host = record.guest_offset, record.host_offset
        for length in record.payload_bytes:
            if self.codec is None or not 0 < length <= len(self._nothing):
                raise self._journal.damaged(f"{length} bytes of compressed data at {offset} of the disk")
            storage, place, framed = self.inner.place_encoded(offset, self._nothing[:length])
            file, base = self._file_of(storage)
            if (file, base + place) != (record.file, host):
                raise self._elsewhere(offset)
            offset += self.unit_bytes
            host += len(framed)
        if host != record.host_offset + record.length:
            raise self._elsewhere(offset)

    def _elsewhere(self, offset: int) -> ImageError:
        return self._journal.damaged(f"room at {offset} of the disk that is given elsewhere now")


class _Safety:
    """Flushes the target from time to time, in a thread of its own, and then notes in the journal what is safe."""

    def __init__(self, staging: KeptStaging, journal: Journal, writer: _RecordingWriter) -> None:
        self._staging = staging
        self._journal = journal
        self._writer = writer
        self._workers = Workers(1)
        self._flushing: Answer[float] | None = None
        self._is_sound = True
        """False where a flush failed, or was interrupted, and nobody can tell what the disk or the journal has."""
        self._due = time.monotonic() + FLUSH_SECONDS

    def stored(self, position: int) -> None:
        """All before `position` has been written: for the engine."""
        self._writer.settle(position)
        if self._flushing is not None:
            if self._flushing.is_there:
                self.wait()
        elif time.monotonic() >= self._due:
            self._begin()

    def wait(self) -> None:
        """Wait for a flush that goes on. Raises a `StorageError` where it failed."""
        if self._flushing is None:
            return
        flushing, self._flushing = self._flushing, None
        try:
            seconds = flushing.take()
        except BaseException:
            self._is_sound = False
            raise
        self._due = time.monotonic() + max(FLUSH_SECONDS, _FLUSH_SHARE * seconds)

    def save(self) -> None:
        """Make safe what has been written so far, before the run ends early."""
        with contextlib.suppress(VdiskError):
            self.wait()
            if self._writer.is_ahead and self._is_sound:
                self._begin()
                self.wait()

    def __enter__(self) -> _Safety:
        self._workers.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._workers.__exit__(*exc)

    def _begin(self) -> None:
        self._is_sound = False
        self._flushing = self._workers.ask(self._flush, *self._writer.take())
        self._is_sound = True

    def _flush(self, position: int, records: list[Record]) -> float:
        began = time.monotonic()
        self._staging.flush()
        self._journal.add(position, records)
        return time.monotonic() - began


def convert_kept(
    source: BlockDevice,
    writer_class: type[Writer],
    target: str | os.PathLike[str],
    options: Mapping[str, Any],
    *,
    fields: Fields,
    keep: Iterable[str | os.PathLike[str]],
    compress: bool,
    backing: Backing | None,
    threads: int,
    progress: Progress | None,
    flush: bool | None,
) -> Resumed:
    """Convert, from where an earlier run of the same conversion was interrupted; an interrupt leaves what is done.

    The journal's `fields` must be those of the earlier run, else nothing is touched and a `VdiskError` says which one
    differs. Once a part has been made safe, the whole is, before the target appears (unless `flush` is False).
    """
    with KeptStaging(target, keep=keep) as staging, Journal(staging.work_folder / _JOURNAL_NAME) as journal:
        _settle_past(staging, journal, fields)
        staging.before_renames = journal.forget
        inner = writer_class(staging, source.size, options, compress=compress, backing=backing)
        if not inner.resumes:
            raise Unsupported(target, inner.FORMAT_NAME, "--resume with encryption: each run has a key of its own")
        writer = _RecordingWriter(inner, staging, journal, source.size)
        position = writer.replay()
        plan = make_plan(source, inner)
        rest = plan.rest(position)
        resumed = plan.work_bytes - rest.work_bytes
        if progress is not None and resumed:
            progress(resumed, plan.work_bytes)
        shown = None if progress is None else lambda done, total: progress(resumed + done, resumed + total)
        try:
            with _Safety(staging, journal, writer) as safety:
                try:
                    engine = Engine(source, writer, rest, threads, shown, safety.stored)
                    engine.run()
                    safety.wait()
                    inner.finish()
                except (KeyboardInterrupt, MemoryError, StorageError):
                    safety.save()
                    raise
        finally:
            staging.keeps = not journal.is_empty
        staging.commit(flush=True if flush is None and staging.keeps else flush)
        return Resumed(plan, writer.replayed_bytes + engine.written_bytes, resumed)


def _settle_past(staging: KeptStaging, journal: Journal, fields: Fields) -> None:
    """Take over what an earlier run left, or start over where it left nothing."""
    staging.keeps = not journal.is_empty
    if journal.is_empty or journal.fields is None:
        staging.start_over(journal.path)
        journal.start(fields)
        return
    _refuse_other(staging, journal.fields, fields)
    past: dict[int, KeptFile] = {}
    for block in journal.blocks():
        for record in block.records:
            known = past.setdefault(record.file, KeptFile())
            if record.kind == SIZED:
                known.size_bytes = record.length
            elif record.kind != ZEROED:
                known.add(record.host_offset, record.length)
    staging.past = past
    journal.go_on()


def _refuse_other(staging: KeptStaging, then: Fields, now: Fields) -> None:
    """`StorageError` where a conversion is not the one that was interrupted."""
    for name in {**then, **now}:
        if then.get(name) != now.get(name):
            expected, found = (f"{fields[name]}" if name in fields else "none" for fields in (then, now))
            raise StorageError(
                staging.work_folder,
                "resume",
                f"it is of another conversion: {name}: expected {expected}, found {found}; {START_OVER}",
            )


__all__ = ["Resumed", "convert_kept", "fields_of"]
