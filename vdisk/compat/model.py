"""The shape of the facts: what a target opens, under which limits, and how we know."""

from __future__ import annotations

from typing import Any, NamedTuple

MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40


class Finding(NamedTuple):
    """One thing to know about an image at a target."""

    level: str
    """"error" (it does not fit), "warning" (it may not start, or not be the same) or "note"."""
    what: str
    why: str
    fix: str = ""
    """The command that mends it; "" where none does."""
    in_guest: bool = False
    """The command is for the system on the disk, not for the image."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name.replace("_", "-"): value for name, value in self._asdict().items()}


class Source(NamedTuple):
    """Where a fact was found."""

    text: str
    """Document or source file, with its version."""
    grade: str
    """"S" source code read, "D" vendor's documentation, "R" run by us, "X" secondary source, "G" general knowledge."""
    date: str
    """Year and month of the look-up."""


class Support(NamedTuple):
    """One format at one target."""

    format: str
    """Our name of the format."""
    listed: bool
    """Stands in the starting table of formats a hypervisor supports."""
    mode: str
    """What is verified: "native" (opened and written), "import" (the target's own import takes it), "read-only",
    "convert" (only after another program has converted it) or "none"."""
    source: Source
    variants: tuple[str, ...] = ()
    """Sub-formats that this row is about; none named: all."""
    note: str = ""
    """What a user must know."""
    forbidden: tuple[str, ...] = ()
    """Features that it refuses in this format; see `Target.forbidden`."""
    largest_bytes: int | None = None
    """The longest disk in this format."""
    blocks: tuple[int, int] | None = None
    """The smallest and the largest cluster, grain or block, in bytes."""

    @property
    def opens(self) -> bool:
        """Whether the target takes an image of this format as it is."""
        return self.mode in ("native", "import")

    @property
    def verdict(self) -> str:
        """The listed claim against what is verified: "agrees", "partly", "wrong"; "not listed" for what is true too."""
        if not self.listed:
            return "not listed" if self.opens else "agrees"
        if self.mode == "native":
            return "partly" if self.variants else "agrees"
        return "partly" if self.mode in ("import", "read-only") else "wrong"


class Recipe(NamedTuple):
    """How to make an image that a target takes: `vdisk convert --for`."""

    format: str
    options: tuple[tuple[str, str], ...] = ()
    compress: bool = False
    size_multiple: int = 1
    """The disk is prolonged to a multiple of so many bytes."""
    package: str = ""
    """"gcp-tar", "ova", "oci", "vagrant-libvirt", "vagrant-virtualbox", or nothing: the image alone."""


class Target(NamedTuple):
    """A place where an image shall run."""

    name: str
    """As `--for` takes it."""
    title: str
    kind: str
    """"hypervisor", "cloud" or "package"."""
    supports: tuple[Support, ...]
    recipe: Recipe
    largest_bytes: int | None = None
    smallest_bytes: int | None = None
    size_multiple: int = 1
    """The disk's length must be a multiple of so many bytes."""
    firmware: tuple[str, ...] = ("bios", "uefi")
    controllers: tuple[str, ...] = ()
    """Linux drivers, any one of which finds the boot disk there; the first is that of the usual controller."""
    profile: str | None = None
    """Profile of the embedded hypervisor that imitates its default machine."""
    forbidden: tuple[str, ...] = ()
    """Features that it refuses in any format: "zstd", "extended_l2", "data_file", "backing", "encryption", "snapshots",
    "4k_sectors", "split" (several files), "zero_extents"."""
    note: str = ""
    source: Source | None = None

    def rows(self, format_name: str) -> list[Support]:
        """The rows for a format; more than one where its variants are taken in different ways."""
        return [row for row in self.supports if row.format == format_name]

    def support(self, format_name: str, variant: str = "") -> Support | None:
        """The row for a variant of a format; where none fits, the first one for the format, or None."""
        rows = self.rows(format_name)
        return next((row for row in rows if not row.variants or variant in row.variants), rows[0] if rows else None)
