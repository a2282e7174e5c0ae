"""`Image` and `Writer`: what every format implements, to be opened and to be made."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from vdisk.block.device import BlockDevice
from vdisk.errors import OptionError, Unsupported
from vdisk.formats.check import CheckReport, Repair
from vdisk.formats.gate import Gate
from vdisk.formats.options import Option, parse_options
from vdisk.storage.base import Buffer, Storage

if TYPE_CHECKING:
    from vdisk.storage.staging import Staging


@dataclass(slots=True)
class OpenRequest:
    """How an image is to be opened."""

    gate: Gate
    writable: bool = False
    with_backing: bool = True
    """Open the files behind it; without them, what is unallocated reads as zeros (`info` and `check` need no more)."""
    backing_format: str | None = None
    """The format of the backing file, where the image does not name it: it is never guessed."""
    secret: bytes | None = None
    """What unlocks an encrypted image, and those behind it; without it one opens, and its data cannot be read."""


@dataclass(slots=True)
class Description:
    """What an image says of itself, beyond its size; `vdisk info` shows it."""

    cluster_size: int | None = None
    is_compressed: bool = False
    is_encrypted: bool = False
    is_dirty: bool = False
    backing_name: str | None = None
    """As the image has it, unresolved."""
    backing_format: str | None = None
    snapshots: list[dict[str, Any]] = field(default_factory=list)
    """Keys as in `qemu-img info --output=json`."""
    specific: dict[str, Any] = field(default_factory=dict)
    """`format-specific.data` as qemu-img has it, and what else is worth knowing."""
    notes: list[str] = field(default_factory=list)
    """What a user should be told: a footer recovered from its copy, a stale name."""
    children: list[str] = field(default_factory=list)
    """Paths of the other files that hold this image's own bytes (extents, data file)."""


class Image(BlockDevice):
    """A block device in a file of some format."""

    format_name: ClassVar[str]
    guessed_from: str | None = None
    """From what its format was guessed, in words; None where the format was named."""

    @classmethod
    @abc.abstractmethod
    def open(cls, storage: Storage, request: OpenRequest) -> Self:
        """Open the image in `storage`, which it owns from here on, on failure too (it is closed then).

        Raises `NotThisFormat`, `Corrupt`, `Unsupported`, `PolicyError` or `StorageError`.
        """

    @abc.abstractmethod
    def describe(self) -> Description:
        """What the image says of itself."""

    def open_snapshot(self, name: str) -> BlockDevice:
        """The disk as a snapshot inside the image has it, by name or ID; read-only, and it needs the image open."""
        raise Unsupported(self.name, self.format_name, "snapshots inside an image")

    def check(self, repair: Repair = Repair.NONE, *, dry_run: bool = False) -> CheckReport:
        """Hold the metadata against itself; `repair` mends what it allows, `dry_run` only says what it would mend."""
        raise Unsupported(self.name, self.format_name, "check")

    def resize(self, size: int, *, shrink: bool = False) -> None:
        """Change the disk's length. Cutting data off needs `shrink`, else it is an `OptionError`."""
        raise Unsupported(self.name, self.format_name, "resize")

    def refuse_cut(self, size: int, *, shrink: bool) -> None:
        """For `resize`: `OptionError` when the new size cuts data off and that was not allowed."""
        if size < self.size and not shrink:
            raise OptionError(f"{self.name}: size: {size} is less than {self.size}: cutting data off needs shrink")

    def set_backing(self, name: str | None, format: str | None) -> None:
        """Name another backing file (None: none) in the metadata; the data stays as it is, and so does `backing`."""
        raise Unsupported(self.name, self.format_name, "rebase")


class Backing(NamedTuple):
    """The image behind a new one, as the new one shall name it."""

    name: str
    format: str
    device: BlockDevice


class Placement(NamedTuple):
    """Room given to guest bytes: `length` bytes from `offset` go to `storage` at `host`."""

    offset: int
    length: int
    storage: Storage
    host: int


class Writer(abc.ABC):
    """Lays out a new image in one pass, guest offsets ascending: it gives room, the caller moves the bytes.

    The methods are called from one thread; the bytes may be written to the places given from any. Nothing placed
    reads as zeros, or as the backing image has it. A writer on which nothing is placed makes an empty image:
    creating is converting nothing.
    """

    FORMAT_NAME: ClassVar[str]
    OPTIONS: ClassVar[tuple[Option, ...]] = ()
    CAN_COMPRESS: ClassVar[bool] = False
    CAN_BACK: ClassVar[bool] = False
    CAN_LENGTHEN: ClassVar[bool] = False
    """Whether `lengthen` works: the disk's size need not be known before its data."""

    ascends: bool = False
    """Everything is written in ascending order of host offsets, as long as the caller writes so: a pipe can take it."""
    unit_bytes: int
    """The cluster, grain or block: what is placed starts on a multiple of it and ends on one or at the disk's end."""
    codec: str | None = None
    """When set, `place_encoded` takes units compressed by this codec (`vdisk.block.codecs`), one unit a call."""
    level: int | None = None
    """The codec's level, where the user chose one."""
    resumes: bool = True
    """Another writer, made in the same way, gives the same room and finds the data in it: not with a key of its own."""
    holes_are_zeros: bool = True
    """Bytes of a place that nobody writes read as zeros; where not (encryption), a unit is to be written whole."""
    must_encode: bool = False
    """Every unit is stored compressed, even one that grows by it (streamOptimized); otherwise such a unit is placed."""

    def __init__(
        self,
        staging: Staging,
        size: int,
        options: Mapping[str, Any],
        *,
        compress: bool = False,
        backing: Backing | None = None,
    ) -> None:
        """A subclass calls this first, then reads `self.options` (all of `OPTIONS`, checked, with defaults)."""
        name = self.FORMAT_NAME
        if size < 0:
            raise OptionError(f"{name}: size: expected 0 or more, found {size}")
        if compress and not self.CAN_COMPRESS:
            raise OptionError(f"{name}: cannot be compressed")
        if backing is not None and not self.CAN_BACK:
            raise OptionError(f"{name}: cannot have a backing file")
        self.staging = staging
        self.size = size
        self.options = parse_options(name, self.OPTIONS, options)
        self.compress = compress
        self.backing = backing

    @abc.abstractmethod
    def place(self, offset: int, length: int) -> Iterable[Placement]:
        """Room for guest bytes, in pieces; the rest of a unit that the disk's end cuts off is the writer's care."""

    def place_encoded(self, offset: int, payload: Buffer) -> tuple[Storage, int, Buffer]:
        """Room for one compressed unit: (storage, host, bytes to write there, with any header and padding)."""
        raise NotImplementedError(f"{type(self).__name__} has a codec and no place_encoded")

    def zero(self, offset: int, length: int) -> None:
        """Make whole units read as zeros although a backing image has data there; only called with a backing image."""
        raise OptionError(f"{self.FORMAT_NAME}: cannot hide a backing file's data under zeros")

    def lengthen(self, size: int) -> None:
        """Make the disk longer, before what lies there is placed: the size of what comes out of a pipe is not known."""
        raise OptionError(f"{self.FORMAT_NAME}: the disk's size has to be known before its data")

    @abc.abstractmethod
    def finish(self) -> None:
        """Write headers and tables; the staging is committed afterwards by the caller."""
