"""`vdisk map`."""

from __future__ import annotations

import sys
from typing import Any

import click

from vdisk.cli.common import SIZE, json_option, open_image, reading_options


@click.command(
    epilog="""\b
Examples:
  vdisk map disk.qcow2
  vdisk map --json disk.vmdk"""
)
@click.argument("image", type=click.Path())
@click.option("--start", type=SIZE, default=0, metavar="OFFSET", help="Begin at this offset of the disk.")
@click.option("--length", type=SIZE, default=None, metavar="SIZE", help="Go no further than this many bytes.")
@reading_options
@json_option
def command(image: str, start: int, length: int | None, as_json: bool, **how: Any) -> None:
    """Say which parts of the disk in IMAGE hold data, which are zeros, and where in which file the data lies.

    The JSON is that of `qemu-img map --output=json`. Depth 0 is the image itself, 1 its backing file, and so on.
    """
    from vdisk.inspect.maps import map_of

    with open_image(image, **how) as disk:
        if length is not None:
            length = min(length, max(0, disk.size - start))
        rows = map_of(disk, start, length)
        if as_json:
            _print_json(rows)
            return
        print(f"{'Offset':<18}{'Length':<18}{'Kind':<12}{'Mapped to':<18}File")
        for row in rows:
            kind = "compressed" if row["compressed"] else "data" if row["data"] else "zero" if row["present"] else "-"
            mapped = hex(row["offset"]) if "offset" in row and row["data"] else ""
            file = (row.get("filename", image) if row["depth"] == 0 else row.get("filename", "")) if row["data"] else ""
            print(f"{row['start']:<#18x}{row['length']:<#18x}{kind:<12}{mapped:<18}{file}".rstrip())


def _print_json(rows: Any) -> None:
    """One extent a line, written as they are found: a map can have millions."""
    import json

    write = sys.stdout.write
    write("[")
    separator = ""
    for row in rows:
        write(separator + json.dumps(row))
        separator = ",\n"
    write("]\n")
