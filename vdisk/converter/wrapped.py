"""`WrappedWriter`: a writer that stands between the engine and the real one."""

from __future__ import annotations

from collections.abc import Iterable

from vdisk.formats.image import Placement, Writer
from vdisk.storage.base import Buffer, Storage


class WrappedWriter(Writer):
    """Says of itself what `inner` says, and passes everything on to it; a subclass does something about it."""

    def __init__(self, inner: Writer) -> None:
        self.FORMAT_NAME = inner.FORMAT_NAME  # type: ignore[misc]
        self.inner = inner
        self.size, self.unit_bytes = inner.size, inner.unit_bytes
        self.codec, self.level, self.must_encode = inner.codec, inner.level, inner.must_encode
        self.holes_are_zeros = inner.holes_are_zeros
        self.backing = inner.backing

    def place(self, offset: int, length: int) -> Iterable[Placement]:
        return self.inner.place(offset, length)

    def place_encoded(self, offset: int, payload: Buffer) -> tuple[Storage, int, Buffer]:
        return self.inner.place_encoded(offset, payload)

    def zero(self, offset: int, length: int) -> None:
        self.inner.zero(offset, length)

    def finish(self) -> None:
        self.inner.finish()
