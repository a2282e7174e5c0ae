"""`--report`: one page of HTML that needs nothing from elsewhere: verdicts, partitions, an allocation map, screens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

from vdisk.block.device import BlockDevice
from vdisk.block.extent import Kind
from vdisk.compat.examine import Examination
from vdisk.compat.guest_rules import guest_rows
from vdisk.compat.rules import Verdict
from vdisk.compat.table import size_words
from vdisk.compat.text import because, boot_words, claims, fits_words, fix_words

_COLUMNS, _ROWS = 96, 16
_CELL, _GAP = 8, 1
_MOST_OPEN = 4
"""Of more targets than this the findings are folded."""
_KINDS = ("absent", "zeros", "data", "compressed")
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --yes: #2a7d46; --but: #a76a00; --no: #b3261e; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } td, th { padding: .25rem .6rem; text-align: left;
  border-bottom: 1px solid var(--line); vertical-align: top; }
.yes { color: var(--yes); } .but { color: var(--but); } .no { color: var(--no); } .yes, .but, .no { font-weight: 600; }
code, pre { font: 13px/1.3 ui-monospace, monospace; overflow-wrap: anywhere; }
pre.screen { background: #000; color: #ccc; padding: .6rem; overflow-x: auto; }
ul { margin: .2rem 0; padding-left: 1.2rem; }
svg { max-width: 100%; height: auto; } .absent { fill: #8883; } .zeros { fill: #9ab; } .data { fill: #2563a8; }
.compressed { fill: #7a3ea8; } .key { display: inline-block; width: .9rem; height: .9rem; margin: 0 .3rem 0 1rem; }
"""


def report(examination: Examination, disk: BlockDevice) -> str:
    """The page. What comes out of the image is escaped: it may be hostile."""
    return "\n".join(_page(examination, disk)) + "\n"


def _page(examination: Examination, disk: BlockDevice) -> Iterator[str]:
    facts = examination.facts
    title = f"Where {facts.path} runs"
    yield "<!DOCTYPE html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    yield f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>"
    yield f"<h1>{_text(title)}</h1>"
    kind = f"{facts.format} ({facts.variant})" if facts.variant else facts.format
    yield from _table(
        (),
        [
            ("format", _text(kind)),
            ("size", _text(size_words(facts.size_bytes))),
            ("boots by BIOS", _text(facts.bios or "no")),
            ("boots by UEFI", _text(facts.uefi or "no")),
            *((what.rstrip(":"), _text(said)) for what, said in guest_rows(facts.guest, facts.guest_hint)),
        ],
    )
    yield "<h2>Targets</h2>"
    booted = any(verdict.boot is not None for verdict in examination.verdicts)
    head = ("target", "fits", "listed", "verified", *(("boot",) if booted else ()), "because")
    yield from _table(head, [_row(verdict, booted) for verdict in examination.verdicts])
    yield "<h2>Partitions</h2>"
    yield from _partitions(examination)
    yield "<h2>Allocation</h2>"
    if facts.unreadable:
        yield f"<p>{_text(facts.unreadable)}</p>"
    else:
        yield from allocation_map(disk)
    yield from _boots(examination.verdicts)
    yield from _findings(examination.verdicts)
    yield "</body></html>"


def _text(text: object) -> str:
    """Text for the page: marks escaped, what a terminal or a browser would act on shown."""
    plain = "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in str(text))
    return escape(plain)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table; the cells are HTML."""
    yield "<table>"
    if head:
        yield "<thead><tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr></thead>"
    yield "<tbody>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
    yield "</tbody></table>"


def _row(verdict: Verdict, booted: bool) -> list[str]:
    words = fits_words(verdict)
    mark = {"yes": "yes", "no": "no"}.get(words, "but")
    listed, verified = claims(verdict)
    boot = [_text(boot_words(verdict.boot))] if booted else []
    title = f"{_text(verdict.target.title)}<br><code>{_text(verdict.target.name)}</code>"
    return [title, f'<span class="{mark}">{words}</span>', listed, _text(verified), *boot, _text(because(verdict))]


def _findings(verdicts: Sequence[Verdict]) -> Iterator[str]:
    yield "<h2>Findings</h2>"
    for verdict in verdicts:
        if not verdict.findings:
            continue
        yield f"<details{' open' * (len(verdicts) <= _MOST_OPEN)}><summary>{_text(verdict.target.title)}</summary><ul>"
        for finding in verdict.findings:
            fix = f"<br><code>{_text(fix_words(finding))}</code>" if finding.fix else ""
            yield f"<li><b>{finding.level}</b> {_text(finding.what)}: {_text(finding.why)}{fix}</li>"
        yield "</ul></details>"


def _partitions(examination: Examination) -> Iterator[str]:
    facts = examination.facts
    table = facts.table
    backup = f"; backup GPT: {table.backup_gpt}" if table.backup_gpt != "none" else ""
    yield f"<p>Table: {_text(table.kind)}{_text(backup)}</p>"
    rows = [
        [
            _text(partition.number if partition else "whole disk"),
            _text(size_words(partition.start) if partition else "0 bytes"),
            _text(size_words(partition.length if partition else facts.size_bytes)),
            _text(partition.type_name if partition else ""),
            "active" if partition and partition.is_active else "",
            _text(found.kind or "not known"),
            _text(found.label),
        ]
        for partition, found in facts.file_systems
    ]
    yield from _table(("number", "start", "length", "type", "", "holds", "label"), rows)


def allocation_map(disk: BlockDevice) -> Iterator[str]:
    """What each stretch of the disk is stored as, as a picture (SVG): a cell a stretch, what fills it most."""
    cells = allocation_cells(disk, _COLUMNS * _ROWS)
    step = _CELL + _GAP
    rows = -(-len(cells) // _COLUMNS)
    yield (
        f'<svg role="img" aria-label="allocation map" viewBox="0 0 {_COLUMNS * step} {rows * step}" '
        f'width="{_COLUMNS * step}">'
    )
    for number, kind in enumerate(cells):
        row, column = divmod(number, _COLUMNS)
        yield (f'<rect class="{kind}" x="{column * step}" y="{row * step}" width="{_CELL}" height="{_CELL}"/>')
    yield "</svg>"
    keys = "".join(
        f'<svg class="key" viewBox="0 0 8 8"><rect class="{kind}" width="8" height="8"/></svg>{kind}' for kind in _KINDS
    )
    yield f"<p>{keys}</p>"


def allocation_cells(disk: BlockDevice, count: int) -> list[str]:
    """The disk in at most `count` cells of one length (the last may be shorter), each of the kind it most is."""
    if not disk.size:
        return []
    cell_bytes = max(512, -(-disk.size // count))
    cell_bytes = -(-cell_bytes // 512) * 512
    totals = [[0] * len(_KINDS) for _ in range(-(-disk.size // cell_bytes))]
    for extent in disk.map():
        kind = 3 if extent.kind is Kind.ENCODED else 2 if extent.kind is Kind.DATA else 1 if extent.is_present else 0
        position, end = extent.start, extent.end
        while position < end:
            cell = position // cell_bytes
            upto = min(end, (cell + 1) * cell_bytes)
            totals[cell][kind] += upto - position
            position = upto
    # Any data shows: in a thin disk of many gigabytes a cell is seldom full, and what is stored is what counts.
    return [_KINDS[max((2, 3), key=cell.__getitem__) if cell[2] or cell[3] else 1 if cell[1] else 0] for cell in totals]


def _boots(verdicts: Iterable[Verdict]) -> Iterator[str]:
    """The last screen of each boot, once a profile, with what the profile imitates and what it does not."""
    shown: set[str] = set()
    for verdict in verdicts:
        boot: dict[str, Any] | None = verdict.boot
        if boot is None or not boot["tried"] or boot["profile"] in shown:
            continue
        if not shown:
            yield "<h2>Boots</h2>"
        shown.add(boot["profile"])
        imitates = boot["imitates"]
        yield f"<h3>{_text(imitates['title'])}: {_text(boot_words(boot))}</h3>"
        yield f"<p>{_text(boot['reason'])} ({_text(boot['engine'])})</p>"
        yield (
            f"<p>Imitated: chipset {_text(imitates['chipset'])}, disk on {_text(imitates['controller'])} (Linux: "
            f"{_text(imitates['driver'])}), SMBIOS {_text(imitates['smbios'])}. Not imitated: "
            f"{_text('; '.join(imitates['not']))}.</p>"
        )
        screen = boot["screen"].rstrip() or boot["serial"][-4000:].strip()
        yield f'<pre class="screen">{_text(screen) or "(nothing on the screen)"}</pre>'
