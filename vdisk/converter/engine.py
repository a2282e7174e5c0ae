"""Carrying out a plan: threads read, look for zeros and compress; one thread gives room and writes, in order.

The pieces in flight use a fixed set of buffers, so memory does not grow with the disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from vdisk.block import codecs
from vdisk.block.device import BlockDevice
from vdisk.block.extent import Extent
from vdisk.block.workers import Answer, Workers
from vdisk.converter.plan import Action, Plan, can_pass
from vdisk.converter.zeros import data_runs, whole_units
from vdisk.errors import Corrupt
from vdisk.formats.image import Writer
from vdisk.storage.base import Buffer, Storage

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

_PIECE_BYTES = 1 << 20
_PIECES_A_THREAD = 3


class Piece(NamedTuple):
    """What a worker made of a piece of the disk."""

    start: int
    length: int
    buffer: bytearray
    runs: list[tuple[int, int]]
    """Stretches to be placed, relative to `start`: what is not zero, or differs from the backing image."""
    zeros: list[tuple[int, int]]
    """Whole units that have to be made zero, because the backing image has data there."""
    payloads: list[tuple[int, bytes]] | None
    """(offset relative to `start`, compressed unit), when the target is compressed; a unit may be missing: place it."""


Work = Callable[[int, int, bytearray], Piece]
"""What a worker does: (start, length, buffer of a piece) to what it made of it."""


class Engine:
    """One conversion from a device to a writer."""

    def __init__(
        self,
        source: BlockDevice,
        writer: Writer,
        plan: Plan,
        threads: int,
        progress: Progress | None,
        stored: Callable[[int], None] | None = None,
    ) -> None:
        """`stored` is called, where room is given, with an offset before which all that is to be written has been."""
        self._source = source
        self._writer = writer
        self._plan = plan
        self._threads = threads
        self._progress = progress
        self._stored = stored
        self._unit_bytes = writer.unit_bytes
        self._piece_bytes = max(_PIECE_BYTES // writer.unit_bytes, 1) * writer.unit_bytes
        self._behind = None if writer.backing is None else writer.backing.device
        self._buffers: deque[bytearray] = deque()
        self.written_bytes = 0
        """Guest bytes that the target holds."""

    def run(self) -> None:
        """Move everything; the writer is finished by the caller."""
        in_flight: deque[tuple[int, Answer[Piece]]] = deque()
        done, total = 0, self._plan.work_bytes
        pieces_most = self._threads * _PIECES_A_THREAD
        # Blocks of megabytes (VHD, VHDX) take fewer buffers.
        pieces_most = max(2, min(pieces_most, (48 << 20) // self._piece_bytes))
        with Workers(self._threads) as workers:
            for work, start, length, buffer in self._pieces():
                if len(in_flight) >= pieces_most:
                    done += self._finish(in_flight.popleft(), done, total)
                in_flight.append((length, workers.ask(work, start, length, buffer)))
            while in_flight:
                done += self._finish(in_flight.popleft(), done, total)

    def _pieces(self) -> Iterator[tuple[Work, int, int, bytearray]]:
        """(what to do, start, length, buffer) of every piece, in order."""
        for step in self._plan:
            if step.action is Action.SKIP:
                continue
            work = self._work_for(step.action)
            for start in range(step.start, step.start + step.length, self._piece_bytes):
                yield work, start, min(self._piece_bytes, step.start + step.length - start), self._buffer()

    def _work_for(self, action: Action) -> Work:
        if action is Action.PASS:
            return self._pass
        if self._behind is not None:
            return self._read_difference
        return self._read if self._writer.codec is None else self._read_and_encode

    def _buffer(self) -> bytearray:
        return self._buffers.popleft() if self._buffers else bytearray(self._piece_bytes)

    def _finish(self, item: tuple[int, Answer[Piece]], done: int, total: int) -> int:
        length, answer = item
        piece = answer.take()
        self._store(piece)
        if self._stored is not None:
            self._stored(piece.start + piece.length)
        self._buffers.append(piece.buffer)
        if self._progress is not None:
            self._progress(done + length, max(total, done + length))
        return length

    # In the workers --------------------------------------------------------------------------------------------

    def _fill(self, start: int, length: int, buffer: bytearray) -> None:
        self._source.readinto(start, memoryview(buffer)[:length])

    def _read(self, start: int, length: int, buffer: bytearray) -> Piece:
        self._fill(start, length, buffer)
        return Piece(start, length, buffer, data_runs(buffer, length), [], None)

    def _read_difference(self, start: int, length: int, buffer: bytearray) -> Piece:
        """Only units that differ from the backing image are stored."""
        behind = self._behind
        assert behind is not None
        self._fill(start, length, buffer)
        theirs = bytearray(length)
        behind._read_through(start, memoryview(theirs))
        runs, zeros, payloads = [], [], []
        mine = memoryview(buffer)
        for at in range(0, length, self._unit_bytes):
            end = min(at + self._unit_bytes, length)
            unit = bytes(mine[at:end])
            if unit == theirs[at:end]:
                continue
            if not any(unit):
                zeros.append((at, end))
                continue
            payload = self._encode_unit(unit) if self._writer.codec is not None else None
            if payload is not None:
                payloads.append((at, payload))
            else:
                runs.append((at, end))
        return Piece(start, length, buffer, runs, zeros, payloads)

    def _read_and_encode(self, start: int, length: int, buffer: bytearray) -> Piece:
        self._fill(start, length, buffer)
        runs, payloads = [], []
        view = memoryview(buffer)
        for first, last in whole_units(data_runs(buffer, length), self._unit_bytes, length):
            for at in range(first, last, self._unit_bytes):
                end = min(at + self._unit_bytes, last)
                payload = self._encode_unit(view[at:end])
                if payload is not None:
                    payloads.append((at, payload))
                else:
                    runs.append((at, end))
        return Piece(start, length, buffer, runs, [], payloads)

    def _encode_unit(self, unit: bytes | memoryview) -> bytes | None:
        """A unit compressed, prolonged by zeros where the disk ends in it; None when that gains nothing."""
        writer = self._writer
        assert writer.codec is not None
        if len(unit) < self._unit_bytes:
            unit = bytes(unit).ljust(self._unit_bytes, b"\0")
        payload = codecs.encode(writer.codec, unit, writer.level)
        return payload if len(payload) < self._unit_bytes or writer.must_encode else None

    def _pass(self, start: int, length: int, buffer: bytearray) -> Piece:
        """Compressed units as they are: each is decoded once, to be sure of it, and thrown away."""
        runs, payloads = [], []
        extents = list(self._source.map(start, length))
        for extent in extents:
            at = extent.start - start
            payload = self._rewrapped(extent) if can_pass(extent, self._writer, self._source.size) else None
            if payload is None:  # a window too large for the target
                end = at + extent.length
                self._source.readinto(extent.start, memoryview(buffer)[at:end])
                payload = self._encode_unit(memoryview(buffer)[at:end])
            if payload is None:
                runs.append((at, at + extent.length))
            else:
                payloads.append((at, payload))
        return Piece(start, length, buffer, runs, [], payloads)

    def _rewrapped(self, extent: Extent) -> bytes | None:
        """A unit's compressed bytes in the target's wrapping, or None when it must be compressed anew."""
        encoded, storage = extent.encoded, extent.storage
        assert encoded is not None
        assert storage is not None
        data = storage.read(encoded.host, encoded.host_length)
        try:
            unit, used = codecs.decode_whole(encoded.codec, data, encoded.unit_length)
        except ValueError as error:
            raise Corrupt(storage.name, f"compressed data at {encoded.host}", str(error)) from error
        ours = self._writer.codec
        if encoded.codec == ours:
            return data[:used]
        if used is None:
            return None
        return codecs.zlib_of_deflate(data[:used], unit) if ours == "zlib" else codecs.deflate_of_zlib(data[:used])

    # In the one that writes ------------------------------------------------------------------------------------

    def _store(self, piece: Piece) -> None:
        for start, end in piece.zeros:
            self._writer.zero(piece.start + start, end - start)
        if piece.payloads:
            self._store_in_order(piece)
        elif piece.runs:
            self._store_runs(piece, piece.runs)

    def _store_runs(self, piece: Piece, runs: list[tuple[int, int]]) -> None:
        """Room for whole units; of their bytes only what is not zero is written, where holes will do for the rest."""
        view = memoryview(piece.buffer)
        position = 0
        units = whole_units(runs, self._unit_bytes, piece.length)
        if not self._writer.holes_are_zeros:
            runs = units
        for first, last in units:
            for place in self._writer.place(piece.start + first, last - first):
                place_start = place.offset - piece.start
                place_end = place_start + place.length
                while position < len(runs) and runs[position][1] <= place_start:
                    position += 1
                number = position
                while number < len(runs) and runs[number][0] < place_end:
                    start, end = max(runs[number][0], place_start), min(runs[number][1], place_end)
                    place.storage.write(place.host + start - place_start, view[start:end])
                    number += 1
            self.written_bytes += last - first

    def _store_in_order(self, piece: Piece) -> None:
        """Compressed units and those that did not compress, in the disk's order; neighbours in one write."""
        pending: list[Buffer] = []
        target: Storage | None = None
        at = end = 0
        todo: list[tuple[int, int, bytes | None]] = [(start, stop, None) for start, stop in piece.runs]
        todo += [(start, start + self._unit_bytes, payload) for start, payload in piece.payloads or ()]
        for start, stop, payload in sorted(todo, key=lambda item: item[0]):
            if payload is not None:
                storage, host, framed = self._writer.place_encoded(piece.start + start, payload)
                if storage is target and host == end:
                    pending.append(framed)
                    end += len(framed)
                    continue
            if target is not None:  # a pipe takes nothing that comes too late
                target.write(at, b"".join(pending))
                target = None
            if payload is None:
                self._store_runs(piece, [(start, min(stop, piece.length))])
            else:
                pending, target, at, end = [framed], storage, host, host + len(framed)
        self.written_bytes += sum(min(self._unit_bytes, piece.length - start) for start, _ in piece.payloads or ())
        if target is not None:
            target.write(at, b"".join(pending))
