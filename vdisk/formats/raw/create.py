"""`RawWriter`: a sparse file of the disk's size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vdisk.formats.image import Backing, Placement, Writer
from vdisk.storage.staging import Staging


class RawWriter(Writer):
    """Guest offsets are file offsets; what is not written stays a hole."""

    FORMAT_NAME = "raw"
    CAN_LENGTHEN = True
    ascends = True
    unit_bytes = 4096

    def __init__(
        self,
        staging: Staging,
        size: int,
        options: Mapping[str, Any],
        *,
        compress: bool = False,
        backing: Backing | None = None,
    ) -> None:
        super().__init__(staging, size, options, compress=compress, backing=backing)
        self._storage = staging.create(device_bytes=size)

    def place(self, offset: int, length: int) -> Iterable[Placement]:
        return (Placement(offset, length, self._storage, offset),)

    def lengthen(self, size: int) -> None:
        self._storage.truncate(size)
        self.size = size

    def finish(self) -> None:
        self._storage.truncate(self.size)
