"""The shape of the facts: what a target opens, under which limits, and how we know."""

from __future__ import annotations

from typing import NamedTuple

MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40


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
    """What is verified: "native" (opened and written), "import" (converted on the way in), "read-only" or "none"."""
    source: Source
    variants: tuple[str, ...] = ()
    """Sub-formats that it takes; none named: all."""
    note: str = ""
    """What a user must know."""

    @property
    def opens(self) -> bool:
        """Whether an image of this format runs there without being converted first."""
        return self.mode == "native"

    @property
    def verdict(self) -> str:
        """The listed claim against what is verified: "agrees", "incomplete" (true, and not listed) or "wrong"."""
        if self.listed:
            return "agrees" if self.mode == "native" else "wrong"
        return "incomplete" if self.mode == "native" else "agrees"


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
    """Linux drivers, any one of which finds the boot disk on the target's default machine."""
    profile: str | None = None
    """Profile of the embedded hypervisor that imitates its default machine."""
    forbidden: tuple[str, ...] = ()
    """Features that it refuses: "zstd", "extended_l2", "data_file", "backing", "encryption", "snapshots"."""
    note: str = ""
    source: Source | None = None

    def support(self, format_name: str) -> Support | None:
        """The row for a format, if there is one."""
        return next((row for row in self.supports if row.format == format_name), None)
