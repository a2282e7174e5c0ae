"""The table of formats that a target takes, and the catalogue, as plain data and as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vdisk.compat import TARGETS
from vdisk.compat.catalogue import CATALOGUE, Entry
from vdisk.compat.model import Source, Support, Target

MODES = {
    "native": "opens",
    "import": "imports",
    "read-only": "reads only",
    "convert": "after conversion",
    "none": "no",
}
"""What is verified, in words."""
GRADES = {
    "S": "source code read",
    "D": "vendor's documentation",
    "R": "run by us",
    "X": "secondary source",
    "G": "general knowledge",
}
"""How we know."""


def is_listed(target: Target) -> bool:
    """Whether the starting table has a row for the target: only then can its claim be right or wrong."""
    return any(row.listed for row in target.supports)


def claim(target: Target, row: Support) -> str:
    """The listed claim against what is verified; empty where the starting table has no row for the target."""
    return row.verdict if is_listed(target) else ""


def table_data(targets: Iterable[Target] = TARGETS) -> list[dict[str, Any]]:
    """Every target with its formats, for JSON."""
    return [
        {
            "target": target.name,
            "title": target.title,
            "kind": target.kind,
            "formats": [
                {
                    "format": row.format,
                    "variants": list(row.variants),
                    "listed": row.listed,
                    "verified": row.mode,
                    "claim": claim(target, row) or None,
                    "note": row.note,
                    "source": _source_data(row.source),
                }
                for row in target.supports
            ],
            "largest-bytes": target.largest_bytes,
            "smallest-bytes": target.smallest_bytes,
            "size-multiple": target.size_multiple,
            "firmware": list(target.firmware),
            "drivers": list(target.controllers),
            "profile": target.profile,
            "note": target.note,
        }
        for target in targets
    ]


def _source_data(source: Source) -> dict[str, str]:
    return {"text": source.text, "grade": source.grade, "date": source.date}


def catalogue_data(entries: Iterable[Entry] = CATALOGUE) -> list[dict[str, Any]]:
    """Hypervisors of the catalogue, for JSON."""
    return [
        {
            **{name: value for name, value in entry._asdict().items() if name not in ("machine", "formats")},
            "formats": list(entry.formats),
            "machine": None if entry.machine is None else entry.machine._asdict(),
        }
        for entry in entries
    ]


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of text with the cells of `rows` below each other; the last column takes what it needs."""
    if not rows:
        return
    widths = [max(len(row[number]) for row in rows) for number in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def table_text(targets: Iterable[Target] = TARGETS) -> Iterator[str]:
    """The table, a line a format, then where the starting table and what is verified differ."""
    targets = list(targets)
    rows = [("TARGET", "FORMAT", "LISTED", "VERIFIED", "CLAIM", "KINDS")]
    for target in targets:
        named = target.name
        for row in target.supports:
            listed = ("yes" if row.listed else "-") if is_listed(target) else ""
            kinds = ", ".join(row.variants) or "all"
            rows.append((named, row.format, listed, MODES[row.mode], claim(target, row), kinds))
            named = ""
    yield from columns(rows)
    differences = list(differences_of(targets))
    if differences:
        yield ""
        yield "Where the listed formats and what is verified differ:"
        for line in differences:
            yield from textwrap.wrap(line, 116, initial_indent="  ", subsequent_indent="    ")


def differences_of(targets: Iterable[Target]) -> Iterator[str]:
    """A sentence for each cell of the starting table that is not the whole truth."""
    for target in targets:
        for row in target.supports:
            verdict = claim(target, row)
            if verdict in ("", "agrees"):
                continue
            kinds = f" ({', '.join(row.variants)})" if row.variants else ""
            said = "listed" if row.listed else "not listed"
            note = f": {row.note}" if row.note else ""
            source = f"{row.source.text}, {row.source.date}, {GRADES[row.source.grade]}"
            yield f"{target.title}, {row.format}{kinds}: {said}; {MODES[row.mode]}{note} [{source}]"


def catalogue_text() -> Iterator[str]:
    """The catalogue, a line a hypervisor."""
    rows = [("NAME", "TITLE", "TYPE", "VIRTUALIZATION", "VT-x/AMD-V", "FORMATS")]
    for entry in CATALOGUE:
        formats = ", ".join(entry.formats) or "none"
        rows.append((entry.name, entry.title, entry.type, manner_of(entry), entry.hardware, formats))
    return columns(rows)


def manner_of(entry: Entry) -> str:
    """Full virtualization, para-virtualization, both or neither."""
    manners = [word for word, has in (("full", entry.full), ("para", entry.para)) if has]
    return " and ".join(manners) or "none"


def about_entry(entry: Entry) -> Iterator[str]:
    """All that the catalogue knows of one hypervisor."""
    kinds = {"1": "1: on the bare machine", "2": "2: on a host's system", "container": "no hypervisor: containers"}
    rows = [
        ("type", kinds[entry.type]),
        ("maker", entry.maker),
        ("virtualization", manner_of(entry)),
        ("VT-x or AMD-V", entry.hardware),
        ("guests", entry.guests),
        ("formats", ", ".join(entry.formats) or "none"),
    ]
    if entry.machine is not None:
        machine = entry.machine
        rows += [
            ("firmware", machine.firmware),
            ("chipset", machine.chipset),
            ("disk", machine.disk),
            ("CPUID", machine.cpuid or "no signature"),
            ("SMBIOS", machine.smbios),
        ]
    if entry.note:
        rows.append(("note", entry.note))
    yield entry.title
    yield from columns([(f"  {name}:", value) for name, value in rows])


def about_target(target: Target) -> Iterator[str]:
    """All that is known of one target: formats with their sources, limits, the recipe."""
    rows = []
    for row in target.supports:
        kinds = f" ({', '.join(row.variants)})" if row.variants else ""
        rows.append((f"  {row.format}:", f"{MODES[row.mode]}{kinds}{'; ' + row.note if row.note else ''}"))
        rows.append(("", f"  {'listed, ' if row.listed else ''}{row.source.text}, {row.source.date}, "
                         f"{GRADES[row.source.grade]}"))  # fmt: skip
    rows += [(f"  {name}:", value) for name, value in limits_of(target)]
    yield f"{target.title} (--for {target.name})"
    yield from columns(rows)


def limits_of(target: Target) -> Iterator[tuple[str, str]]:
    """(what, in words) of a target's limits and of what `convert --for` makes."""
    if target.smallest_bytes is not None:
        yield "smallest disk", size_words(target.smallest_bytes)
    if target.largest_bytes is not None:
        yield "longest disk", size_words(target.largest_bytes)
    if target.size_multiple > 1:
        yield "disk size", f"a multiple of {size_words(target.size_multiple)}"
    yield "firmware", " or ".join(target.firmware)
    yield "disk drivers", ", ".join(target.controllers)
    if target.profile:
        yield "boot profile", target.profile
    recipe = target.recipe
    options = "".join(f", {name}={value}" for name, value in recipe.options)
    yield "convert makes", f"{recipe.format}{options}{f', packed as {recipe.package}' if recipe.package else ''}"
    if target.note:
        yield "note", target.note


def size_words(size: int) -> str:
    """A size in the largest unit that divides it, binary or decimal, or in bytes."""
    for unit, value in (("TiB", 1 << 40), ("TB", 10**12), ("GiB", 1 << 30), ("GB", 10**9), ("MiB", 1 << 20)):
        for nearly in (0, 1):
            if size >= value and (size + nearly) % value == 0:
                return f"{'less than ' * nearly}{(size + nearly) // value} {unit}"
    return f"{size} bytes"
