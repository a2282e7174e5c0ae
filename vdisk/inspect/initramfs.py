"""Which files an initramfs has: cpio archives one after the other, plain or compressed, read as a stream.

Follows the kernel's Documentation/driver-api/early-userspace/buffer-format.rst: any number of archives of the kinds
"newc" and "crc", each compressed or not, with zeros between them. Microcode comes first and plain, the rest
compressed. Nothing is kept but names, and no more than a set number of bytes is decompressed.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator

from vdisk.inspect.tree import Unreadable

MOST_BYTES = 512 << 20
"""Of an initramfs as it is stored."""
_MOST_UNPACKED_BYTES = 2 << 30
_MOST_FILES = 100_000
_STEP_BYTES = 1 << 20
"""Decompressed at once, where the library can be told."""
_INPUT_BYTES = 64 << 10
_ZSTD_INPUT_BYTES = 4 << 10
"""zstd gives all that its input comes to: less than 180 MiB for 4 KiB."""
_ZSTD_WINDOW_BYTES = 128 << 20
_LZ4_BLOCK_BYTES = 8 << 20
_LONGEST_LZ4_BYTES = _LZ4_BLOCK_BYTES + _LZ4_BLOCK_BYTES // 255 + 16
"""A block of the legacy frame, the only one that the kernel unpacks, and what it comes to at worst."""

_HEADER_BYTES = 110
_CPIO = (b"070701", b"070702")
_LONGEST_NAME = 4096
_TRAILER = b"TRAILER!!!"


class _Stream:
    """Bytes out of pieces, with a look ahead."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._held, self._at = b"", 0
        self.taken = 0
        """Bytes that were read or skipped."""

    def peek(self, length: int) -> bytes:
        """The next bytes; fewer at the end."""
        while len(self._held) - self._at < length:
            piece = next(self._pieces, b"")
            if not piece:
                break
            self._held, self._at = self._held[self._at :] + piece, 0
        return self._held[self._at : self._at + length]

    def read(self, length: int) -> bytes:
        """Take bytes; fewer at the end."""
        data = self.peek(length)
        self._at += len(data)
        self.taken += len(data)
        return data

    def read_some(self, most: int) -> bytes:
        """Take what is at hand, at most so much; nothing at the end."""
        self.peek(1)
        return self.read(min(most, len(self._held) - self._at))

    def skip(self, length: int) -> None:
        """Pass over bytes, which may be many."""
        while length:
            passed = len(self.read_some(length))
            if not passed:
                raise Unreadable("it ends inside a file")
            length -= passed

    def give_back(self, data: bytes) -> None:
        """Put the bytes last read in front of what is next."""
        self._held, self._at = data + self._held[self._at :], 0
        self.taken -= len(data)


class _Budget:
    """What is left of the bytes and files that an initramfs may come to."""

    def __init__(self) -> None:
        self._bytes, self._files = _MOST_UNPACKED_BYTES, _MOST_FILES

    def spend_bytes(self, count: int) -> None:
        self._bytes -= count
        if self._bytes < 0:
            raise Unreadable(f"it unpacks to more than {_MOST_UNPACKED_BYTES >> 30} GiB")

    def spend_file(self) -> None:
        self._files -= 1
        if self._files < 0:
            raise Unreadable(f"it has more than {_MOST_FILES} files")


def names_in(pieces: Iterable[bytes]) -> Iterator[str]:
    """The names of all files in an initramfs, given in pieces. Raises `Unreadable`."""
    stored, budget = _Stream(pieces), _Budget()
    while start := stored.peek(6):
        if start in _CPIO:
            yield from _archive(stored, budget)
        elif not start[0]:
            _pass_zeros(stored)
        else:
            unpacked = _Stream(_unpacked(stored, start, budget))
            while inner := unpacked.peek(6):
                if inner in _CPIO:
                    yield from _archive(unpacked, budget)
                elif not inner[0]:
                    _pass_zeros(unpacked)
                else:
                    raise Unreadable(f"unpacked it begins with {inner!r}, which is no cpio archive")


def _pass_zeros(stream: _Stream) -> None:
    while data := stream.read_some(_INPUT_BYTES):
        rest = data.lstrip(b"\0")
        if rest:
            stream.give_back(rest)
            return


def _archive(stream: _Stream, budget: _Budget) -> Iterator[str]:
    """The names in one cpio archive, up to its trailer."""
    start = stream.taken
    while True:
        header = stream.read(_HEADER_BYTES)
        try:
            file_bytes, name_bytes = int(header[54:62], 16), int(header[94:102], 16)
        except ValueError:
            file_bytes, name_bytes = -1, -1
        if header[:6] not in _CPIO or file_bytes < 0 or not 0 < name_bytes <= _LONGEST_NAME:
            raise Unreadable("the header of a file in it is damaged")
        budget.spend_file()
        name = stream.read(name_bytes).split(b"\0")[0]
        stream.read(-(stream.taken - start) % 4)
        stream.skip(file_bytes)
        stream.read(-(stream.taken - start) % 4)
        if name == _TRAILER:
            return
        yield name.decode("utf-8", "replace")


def _unpacked(stored: _Stream, start: bytes, budget: _Budget) -> Iterator[bytes]:
    """Decompress what comes next, frame by frame of one kind; what lies behind stays in `stored`."""
    mark, kind, unpack = next((row for row in _KINDS if start.startswith(row[0])), (b"", "", None))
    if unpack is None:
        raise Unreadable(f"{kind or f'what begins with {start!r}'} is not looked into")
    try:
        while stored.peek(len(mark)) == mark:
            for data in unpack(stored):
                budget.spend_bytes(len(data))
                if data:
                    yield data
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, RuntimeError) as error:
        raise Unreadable(f"{kind}: {error}") from None


def _feed(stored: _Stream, most: int = _INPUT_BYTES) -> bytes:
    data = stored.read_some(most)
    if not data:
        raise Unreadable("it ends inside its compressed part")
    return data


def _gzip(stored: _Stream) -> Iterator[bytes]:
    decompressor = zlib.decompressobj(zlib.MAX_WBITS | 16)
    while not decompressor.eof:
        yield decompressor.decompress(decompressor.unconsumed_tail or _feed(stored), _STEP_BYTES)
    stored.give_back(decompressor.unused_data)


def _xz(stored: _Stream) -> Iterator[bytes]:
    # The limit is that of the dictionary: a header may ask for 4 GiB.
    return _bounded(stored, lzma.LZMADecompressor(memlimit=_ZSTD_WINDOW_BYTES))


def _bzip2(stored: _Stream) -> Iterator[bytes]:
    return _bounded(stored, bz2.BZ2Decompressor())


def _bounded(stored: _Stream, decompressor: lzma.LZMADecompressor | bz2.BZ2Decompressor) -> Iterator[bytes]:
    while not decompressor.eof:
        yield decompressor.decompress(_feed(stored) if decompressor.needs_input else b"", _STEP_BYTES)
    stored.give_back(decompressor.unused_data)


def _zstd(stored: _Stream) -> Iterator[bytes]:
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()
    try:
        while not decompressor.eof:
            yield decompressor.decompress(_feed(stored, _ZSTD_INPUT_BYTES))
    except zstandard.ZstdError as error:
        raise ValueError(error) from None
    stored.give_back(decompressor.unused_data)


def _lz4(stored: _Stream) -> Iterator[bytes]:
    """The legacy frame: a magic, then blocks with their length in front; what can be no length ends it."""
    import lz4.block

    stored.read(4)
    while 0 < (length := int.from_bytes(stored.peek(4), "little")) <= _LONGEST_LZ4_BYTES:
        stored.read(4)
        data = stored.read(length)
        if len(data) < length:
            raise Unreadable("it ends inside its compressed part")
        try:
            yield lz4.block.decompress(data, uncompressed_size=_LZ4_BLOCK_BYTES)
        except lz4.block.LZ4BlockError as error:
            raise ValueError(error) from None


_KINDS: tuple[tuple[bytes, str, Callable[[_Stream], Iterator[bytes]] | None], ...] = (
    (b"\x1f\x8b", "gzip", _gzip),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    (b"\xfd7zXZ\0", "xz", _xz),
    (b"\x5d\0\0", "LZMA", _xz),
    (b"BZh", "bzip2", _bzip2),
    (b"\x02\x21\x4c\x18", "lz4", _lz4),
    (b"\x89LZO", "an initramfs compressed by LZO", None),
)
"""Magic, name and decompressor of what the kernel unpacks (lib/decompress.c)."""
