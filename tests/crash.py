"""Loss of power, for any writable format: every write is recorded, then replayed up to every point and in every
mixture.

A `CrashRig` opens an image over storages that note each write and flush, changes it at random beside a model, and
then rebuilds what the files could have held at any moment: all writes up to some point (a prefix), and prefixes of
which those behind the last flush have arrived in part and out of order, torn at sectors. Each such state must open,
must not be corrupt, and must hold what a flush of the disk had returned for; what was written since may be there or
not, sector by sector.

::

    rig = CrashRig({"a": path.read_bytes()}, lambda files, writable: formats.open(files["a"], writable=writable))
    rig.scribble(seed=1, count=100)
    assert rig.replay(seed=2) > 1000
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy

from vdisk.block.device import BlockDevice
from vdisk.errors import Unsupported
from vdisk.formats.image import Image
from vdisk.storage.base import Buffer, Storage
from vdisk.storage.memory import MemoryStorage

SECTOR_BYTES = 512

Opener = Callable[[Mapping[str, Storage], bool], BlockDevice]
"""Opens the image whose files (by name) are given, writable or not."""


class Event(NamedTuple):
    """What a file was told to do."""

    file: str
    kind: str
    """'write', 'truncate' or 'flush'."""
    offset: int = 0
    """Where it was written, or the new length."""
    data: bytes = b""


class RecordingStorage(MemoryStorage):
    """A file in memory that notes what is done to it in a list that it shares with its image's other files."""

    def __init__(self, name: str, data: bytes, events: list[Event]) -> None:
        super().__init__(data, name)
        self._events = events

    def write(self, offset: int, data: Buffer) -> None:
        self._events.append(Event(self.name, "write", offset, bytes(data)))
        super().write(offset, data)

    def truncate(self, size: int) -> None:
        self._events.append(Event(self.name, "truncate", size))
        super().truncate(size)

    def flush(self) -> None:
        self._events.append(Event(self.name, "flush"))


class Change(NamedTuple):
    """What the guest did to a range, and which of the files' events came before it."""

    events_before: int
    offset: int
    length: int
    data: bytes | None
    """None: zeros or what was there before, as a discard has it."""


class State(NamedTuple):
    """What the files could have held after a loss of power."""

    what: str
    """How it came to be, for the message of a failure."""
    events: int
    """So many events had been issued."""
    files: dict[str, bytearray]


class CrashRig:
    """One image, its recorder and its model."""

    def __init__(self, files: Mapping[str, bytes], open_image: Opener) -> None:
        """`files` are the image's, by the names that `open_image` knows them by."""
        self.events: list[Event] = []
        self._start = {name: bytes(data) for name, data in files.items()}
        self._open = open_image
        storages = {name: RecordingStorage(name, data, self.events) for name, data in files.items()}
        self.disk = open_image(storages, True)
        self.content = bytearray(self.disk.read(0, self.disk.size))
        self.changes: list[Change] = []
        self.flushes: list[tuple[int, int, bytes]] = [(0, 0, bytes(self.content))]
        """(events, changes) before it returned, and the content that is safe since."""

    # Doing things to the disk ----------------------------------------------------------------------------------

    def write(self, offset: int, data: bytes) -> None:
        """Write to the disk and the model."""
        self.changes.append(Change(len(self.events), offset, len(data), data))
        self.disk.write(offset, data)
        self.content[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Write zeros to the disk and the model."""
        self.changes.append(Change(len(self.events), offset, length, bytes(length)))
        self.disk.write_zeroes(offset, length, unmap=unmap)
        self.content[offset : offset + length] = bytes(length)

    def discard(self, offset: int, length: int) -> None:
        """Discard a range of the disk; the model takes what is there afterwards."""
        self.changes.append(Change(len(self.events), offset, length, None))
        self.disk.discard(offset, length)
        self.content[offset : offset + length] = self.disk.read(offset, length)

    def flush(self) -> None:
        """Flush the disk: from here on the model's content must survive."""
        self.disk.flush()
        self.safe()

    def safe(self) -> None:
        """Note that all the model holds is safe now: something just done has flushed it."""
        self.flushes.append((len(self.events), len(self.changes), bytes(self.content)))

    def scribble(self, seed: int, count: int, *, most_bytes: int = 20_000, discards: bool = True) -> None:
        """Change the disk at random, with a flush now and then, and at the end."""
        maker = random.Random(seed)
        for _ in range(count):
            offset = maker.randrange(self.disk.size)
            length = min(maker.choice([1, 512, 4096, maker.randrange(1, most_bytes)]), self.disk.size - offset)
            what = maker.randrange(10)
            if what == 0:
                self.flush()
            elif what == 1:
                self.zero(offset, length, unmap=maker.random() < 0.5)
            elif what == 2 and discards:
                self.discard(offset, length)
            else:
                self.write(offset, maker.randbytes(length))
        self.flush()

    # Losing power ----------------------------------------------------------------------------------------------

    def states(self, seed: int, *, every: int = 1, mixtures: int = 1) -> Iterator[State]:
        """Every `every`th prefix, and as many mixtures of each as `mixtures`."""
        return crash_states(self._start, self.events, seed, every=every, mixtures=mixtures)

    def replay(
        self,
        seed: int = 0,
        *,
        every: int = 1,
        mixtures: int = 1,
        verify: Callable[[BlockDevice, State], None] | None = None,
        writes: int = 10,
    ) -> int:
        """Hold every state against the model; returns how many there were. `verify` may look for more.

        Each `writes`th state is written to as well, and must be sound afterwards.
        """
        count = 0
        for count, state in enumerate(self.states(seed, every=every, mixtures=mixtures), 1):
            try:
                disk = self._open({name: MemoryStorage(data, name) for name, data in state.files.items()}, False)
                self._check(disk, state)
                if verify is not None:
                    verify(disk, state)
                disk.close()
                if count % writes == 0:
                    self._check_writable(state, random.Random(count))
            except Exception as error:
                raise AssertionError(f"after {state.what} of {len(self.events)}: {error}") from error
        return count

    def _check(self, disk: BlockDevice, state: State) -> None:
        found = numpy.frombuffer(disk.read(0, disk.size), numpy.uint8)
        _, changes_before, safe = next(flush for flush in reversed(self.flushes) if flush[0] <= state.events)
        assert disk.size == len(safe), f"the disk has {disk.size} bytes"
        since = [change for change in self.changes[changes_before:] if change.events_before <= state.events]
        good = found == numpy.frombuffer(safe, numpy.uint8)
        for change in since:
            part = slice(change.offset, change.offset + change.length)
            good[part] |= found[part] == (0 if change.data is None else numpy.frombuffer(change.data, numpy.uint8))
        if not good.all():
            at = int(numpy.flatnonzero(~good)[0])
            raise AssertionError(f"byte {at} of the disk is neither what was flushed nor what was written since")
        _check_sound(disk)

    def _check_writable(self, state: State, maker: random.Random) -> None:
        storages = {name: MemoryStorage(data, name) for name, data in state.files.items()}
        disk = self._open(storages, True)
        model = bytearray(disk.read(0, disk.size))
        for _ in range(3):
            offset = maker.randrange(disk.size)
            data = maker.randbytes(min(5000, disk.size - offset))
            disk.write(offset, data)
            model[offset : offset + len(data)] = data
        disk.close()
        again = self._open(storages, False)
        assert again.read(0, again.size) == model, "it does not hold what was written after the crash"
        _check_sound(again)
        again.close()


def crash_states(
    start: Mapping[str, bytes], events: Sequence[Event], seed: int, *, every: int = 1, mixtures: int = 1
) -> Iterator[State]:
    """What files that were `start` could hold after a loss of power amid `events`: every `every`th prefix, and as
    many mixtures of each as `mixtures`."""
    maker = random.Random(seed)
    files = {name: bytearray(data) for name, data in start.items()}
    durable = {name: bytearray(data) for name, data in start.items()}
    waiting: list[Event] = []  # what no flush has followed yet
    for number, event in enumerate(events, 1):
        if event.kind == "flush":
            for past in waiting:
                if past.file == event.file:
                    _apply(durable, past)
            waiting = [past for past in waiting if past.file != event.file]
        else:
            _apply(files, event)
            waiting.append(event)
        if number % every and number != len(events):
            continue
        yield State(f"the first {number} events", number, {name: data[:] for name, data in files.items()})
        for _ in range(mixtures if waiting else 0):
            mixed = {name: data[:] for name, data in durable.items()}
            kept = maker.choice([0.2, 0.5, 0.9])
            for past in waiting:
                if maker.random() < kept:
                    _apply(mixed, past, maker if maker.random() < 0.3 else None)
            yield State(f"some of the first {number} events, seed {seed}", number, mixed)


def _check_sound(disk: BlockDevice) -> None:
    """Nothing but leaks."""
    if isinstance(disk, Image):
        try:
            report = disk.check()
        except Unsupported:
            return  # a format that cannot be checked has its content compared all the same
        assert report.corruptions == 0, report.findings[:5]


def _apply(files: dict[str, bytearray], event: Event, torn: random.Random | None = None) -> None:
    """Do to a file what an event says; with `torn`, only some of its sectors arrive."""
    data = files[event.file]
    if event.kind == "truncate":
        if event.offset < len(data):
            del data[event.offset :]
        else:
            data.extend(bytes(event.offset - len(data)))
        return
    if event.kind != "write":
        return
    start, end = event.offset, event.offset + len(event.data)
    if end > len(data):
        data.extend(bytes(end - len(data)))
    if torn is None:
        data[start:end] = event.data
        return
    at = start
    while at < end:
        stop = min(end, (at // SECTOR_BYTES + 1) * SECTOR_BYTES)
        if torn.random() < 0.5:
            data[at:stop] = event.data[at - start : stop - start]
        at = stop
