"""Holds an image against a target: findings, each with what, why it matters there, and the command that mends it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vdisk.compat.facts import DiskFacts
from vdisk.compat.guest_rules import guest_findings
from vdisk.compat.model import Finding, Support, Target
from vdisk.compat.table import MODES, size_words
from vdisk.inspect.loaders import LOADERS

_SUFFIXES = {
    "raw": ".img",
    "qcow2": ".qcow2",
    "vmdk": ".vmdk",
    "vdi": ".vdi",
    "vhd": ".vhd",
    "vhdx": ".vhdx",
    "parallels": ".hdd",
}
_PACKAGE_SUFFIXES = {"gcp-tar": ".tar.gz", "ova": ".ova", "oci": ".oci", "vagrant-libvirt": ".box",
                     "vagrant-virtualbox": ".box"}  # fmt: skip
_PACKAGE_TITLES = {
    "gcp-tar": "a gzip'd tar with disk.raw in it",
    "ova": "an OVA",
    "oci": "an OCI image with the disk in /disk/",
    "vagrant-libvirt": "a Vagrant box for libvirt",
    "vagrant-virtualbox": "a Vagrant box for VirtualBox",
}
_FEATURES = {
    "zstd": "clusters compressed by zstd",
    "extended_l2": "extended L2 entries (subclusters)",
    "data_file": "an external data file",
    "backing": "a backing file or parent",
    "encryption": "encryption",
    "snapshots": "internal snapshots",
    "4k_sectors": "logical sectors of 4096 bytes",
    "split": "several extent files",
    "zero_extents": "ZERO extents",
    "loose": "no bundle around it",
}


@dataclass(slots=True)
class Verdict:
    """An image at one target."""

    target: Target
    listed: bool | None
    """What the starting table says of this format; None where it has no row for the target."""
    verified: str
    """As in `Support.mode`; "none" where the target does not know the format."""
    findings: list[Finding] = field(default_factory=list)
    boot: dict[str, Any] | None = None
    """What booting it under the target's profile came to (`--boot`)."""

    @property
    def fits(self) -> bool:
        """No finding speaks against it, a boot that failed (`--boot`) among them."""
        return not any(finding.level == "error" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "target": self.target.name,
            "title": self.target.title,
            "fits": self.fits,
            "listed": self.listed,
            "verified": self.verified,
            "findings": [finding.as_dict() for finding in self.findings],
            "boot": self.boot,
        }


def judge(facts: DiskFacts, target: Target, package: str = "", problems: Iterable[Finding] = ()) -> Verdict:
    """Hold an image against a target. `package` is what it was found in, `problems` what is wrong with that."""
    row = target.support(facts.format, facts.variant)
    listed = any(one.listed for one in target.rows(facts.format))
    taken = row is not None and (not row.variants or facts.variant in row.variants)
    refused = row is not None and facts.features & {*target.forbidden, *row.forbidden}
    verdict = Verdict(
        target,
        listed if any(one.listed for one in target.supports) else None,
        row.mode if row is not None and taken and not refused else "none",
    )
    fix = fix_command(facts, target)
    findings = verdict.findings
    findings += _package(facts, target, package, fix)
    findings += problems
    if row is not None:
        findings += _features(facts, target, row, fix)
    findings += _format(facts, target, row, fix)
    findings += _sizes(facts, target, row, fix)
    findings += _file(facts, target, package, fix)
    findings += _partitions(facts)
    findings += _firmware(facts, target)
    findings += _contents(facts, target)
    if facts.guest is not None:
        findings += guest_findings(facts.guest, target)
    return verdict


def fix_command(facts: DiskFacts, target: Target) -> str:
    """The conversion that makes an image which the target takes."""
    recipe, source = target.recipe, Path(facts.path)
    suffix = _PACKAGE_SUFFIXES[recipe.package] if recipe.package else _SUFFIXES[recipe.format]
    stem = source.name.removesuffix(".gz").removesuffix(".tar")
    stem = Path(stem).stem if Path(stem).suffix else stem
    name = stem + suffix if stem + suffix != source.name else f"{stem}-{target.name}{suffix}"
    words = ["vdisk", "convert", str(source), str(source.with_name(name)), "--for", target.name]
    return shlex.join(words)


def _package(facts: DiskFacts, target: Target, package: str, fix: str) -> Iterator[Finding]:
    wanted = target.recipe.package
    if wanted and package != wanted:
        found = f"it is {_PACKAGE_TITLES[package]}" if package else "it is a disk image on its own"
        yield Finding("error", found, f"{target.title} takes {_PACKAGE_TITLES[wanted]}", fix)
    elif package and not wanted and not (package == "ova" and target.name in ("vmware", "esxi", "workstation", "aws",
                                                                              "virtualbox", "proxmox")):  # fmt: skip
        yield Finding("error", f"it is {_PACKAGE_TITLES[package]}", f"{target.title} takes the image itself", fix)


def _format(facts: DiskFacts, target: Target, row: Support | None, fix: str) -> Iterator[Finding]:
    """Whether the format, and its variant, is taken at all."""
    kind = f"{facts.format} ({facts.variant})" if facts.variant else facts.format
    if row is None:
        takes = ", ".join(dict.fromkeys(one.format for one in target.supports if one.opens))
        yield Finding("error", f"the format is {kind}", f"{target.title} takes {takes}", fix)
    elif row.variants and facts.variant not in row.variants:
        kinds = ", ".join(
            dict.fromkeys(kind for one in target.rows(facts.format) if one.opens for kind in one.variants)
        )
        yield Finding("error", f"the kind is {kind}", f"{target.title} takes of {facts.format} only {kinds}", fix)
    elif not row.opens:
        why = f"{target.title} {_MODE_WORDS[row.mode]}{f' ({row.note})' if row.note else ''}"
        yield Finding("error", f"the format is {kind}", why, fix)
    elif row.mode == "import":
        yield Finding("note", f"the kind is {kind}", f"{target.title} imports it, and does not run from it")


_MODE_WORDS = {
    "read-only": "opens it for reading only",
    "convert": "does not open it",
    "none": "does not open it",
}
assert set(_MODE_WORDS) < set(MODES)


def _features(facts: DiskFacts, target: Target, row: Support, fix: str) -> Iterator[Finding]:
    forbidden = {*target.forbidden, *row.forbidden}
    for name in sorted(facts.features & forbidden):
        yield Finding("error", f"it has {_FEATURES[name]}", f"{target.title} will not open such an image", fix)
    if "backing" in facts.features - forbidden:
        yield Finding(
            "warning", "it has a backing file or parent", "that file must be there too, under the same name", fix
        )
    if "snapshots" in facts.features - forbidden and target.kind != "hypervisor":
        yield Finding("warning", "it has internal snapshots", "only the current state will arrive", fix)
    if row.blocks is not None and facts.block_bytes is not None:
        least, most = row.blocks
        size = facts.block_bytes
        if not least <= size <= most or size & size - 1:
            between = size_or_bytes(least) if least == most else f"{size_or_bytes(least)} to {size_or_bytes(most)}"
            yield Finding("error", f"its blocks have {size_or_bytes(size)}", f"{target.title} takes {between}", fix)
    if facts.is_dirty:
        yield Finding(
            "warning",
            "it was not closed cleanly",
            "its tables may not agree with each other",
            shlex.join(["vdisk", "check", "--repair", "leaks", facts.path]),
        )


def size_or_bytes(size: int) -> str:
    """A block's size in words."""
    return f"{size >> 10} KiB" if size >= 1024 and not size & 1023 and size < 1 << 20 else size_words(size)


def _sizes(facts: DiskFacts, target: Target, row: Support | None, fix: str) -> Iterator[Finding]:
    size = facts.size_bytes
    largest = min((limit for limit in (target.largest_bytes, row and row.largest_bytes) if limit), default=None)
    if largest is not None and size > largest:
        yield Finding(
            "error",
            f"the disk has {size_or_bytes(size)}",
            f"{target.title} takes up to {size_words(largest)} as {facts.format}; another format, or making file "
            "systems and partitions smaller in the guest, then vdisk resize --shrink, helps",
        )
    if target.smallest_bytes is not None and size < target.smallest_bytes:
        yield Finding(
            "error",
            f"the disk has {size_or_bytes(size)}",
            f"{target.title} takes {size_words(target.smallest_bytes)} or more",
            fix,
        )
    if size % target.size_multiple:
        yield Finding(
            "error",
            f"the disk has {size} bytes",
            f"{target.title} takes a whole multiple of {size_words(target.size_multiple)} only",
            fix,
        )
    if size % 512:
        yield Finding("warning", f"the disk has {size} bytes", "that is no whole number of sectors", fix)
    if target.name == "virtual-pc" and facts.geometry_bytes not in (None, size):
        yield Finding(
            "error",
            f"the disk has {size} bytes, its geometry {facts.geometry_bytes}",
            "Virtual PC gives the guest the disk of the geometry: its end is cut off",
            fix,
        )


def _file(facts: DiskFacts, target: Target, package: str, fix: str) -> Iterator[Finding]:
    """What a target asks of the file itself."""
    suffix = Path(facts.path).suffix.lower()
    wanted = {"vhd": (".vhd",), "vhdx": (".vhdx",)}.get(facts.format)
    if target.name in ("hyper-v", "hyper-v-gen2") and wanted and suffix not in wanted:
        yield Finding(
            "error", f"the file's name ends in {suffix or 'nothing'}", f"{target.title} goes by the name", fix
        )
    if target.name == "azure" and facts.format == "vhd" and facts.variant == "fixed" and not package:
        from vdisk.compat.packages.azure import problems_of

        for problem in problems_of(facts.path):
            yield Finding("error", problem, "Azure looks at the footer and at the file's length", fix)


_ROOT_DISK = "/dev/$(lsblk -nro PKNAME $(findmnt -nro SOURCE /))"
"""The disk that the guest runs from, as its shell finds it."""


def _partitions(facts: DiskFacts) -> Iterator[Finding]:
    if facts.unreadable:
        yield Finding("warning", "the disk's contents were not looked at", facts.unreadable)
        return
    table = facts.table
    for problem in table.problems:
        fix = f"sgdisk --move-second-header {_ROOT_DISK}" if problem.startswith("the backup GPT belongs") else ""
        why = "what repairs the table by itself may ask, or refuse"
        yield Finding("warning", f"partition table: {problem}", why, fix, bool(fix))
    if table.kind in ("gpt", "hybrid") and table.sector_bytes != facts.sector_bytes:
        yield Finding(
            "error",
            f"the GPT counts sectors of {table.sector_bytes} bytes, the disk has sectors of {facts.sector_bytes}",
            "neither firmware nor systems find the partitions",
        )
    active = [partition.number for partition in table.partitions if partition.is_active]
    if table.kind == "mbr" and len(active) > 1:
        fix = f"sfdisk --activate {_ROOT_DISK} {active[0]}"
        yield Finding(
            "warning", f"partitions {active} are all active", "boot code of DOS and Windows refuses that", fix, True
        )


def _firmware(facts: DiskFacts, target: Target) -> Iterator[Finding]:
    """Whether what starts the target's machines finds something to start."""
    if facts.unreadable:
        return
    starts = {"bios": bool(facts.bios), "uefi": bool(facts.uefi)}
    if not any(starts.values()):
        if facts.has_esp:
            yield Finding(
                "error" if target.firmware == ("uefi",) else "warning",
                f"the EFI system partition has no {' or '.join(path.rpartition('/')[2] for path in LOADERS)}",
                "UEFI finds another loader only by variables, and those do not travel with the disk",
                "grub-install --removable",
                True,
            )
        else:
            yield Finding("note", "nothing on the disk boots by BIOS or UEFI", "it can be a second disk")
        return
    if any(starts[name] for name in target.firmware):
        only = next((name for name, does in starts.items() if does), "") if sum(starts.values()) == 1 else ""
        if only and len(target.firmware) > 1:
            yield Finding(
                "note",
                f"it boots by {only.upper()} only ({facts.bios or facts.uefi})",
                f"choose {only.upper()} as the machine's firmware",
            )
        return
    has = "BIOS" if starts["bios"] else "UEFI"
    other = " (generation 1 does: --for hyper-v)" if target.name == "hyper-v-gen2" else ""
    other = " (generation 2 does: --for hyper-v-gen2)" if target.name == "hyper-v" else other
    yield Finding(
        "error", f"it boots by {has} only", f"{target.title} starts by {target.firmware[0].upper()} only{other}"
    )


def _contents(facts: DiskFacts, target: Target) -> Iterator[Finding]:
    if facts.holds("LUKS"):
        level = "warning" if target.kind == "cloud" else "note"
        yield Finding(level, "a partition is encrypted by LUKS", "the guest asks for its passphrase at each start")
    if facts.holds("BitLocker"):
        yield Finding("warning", "a partition is encrypted by BitLocker", "another machine asks for the recovery key")
    if facts.holds("LVM"):
        yield Finding("note", "there is LVM on the disk", "a system with volume groups of the same name cannot add it")
