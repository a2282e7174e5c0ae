"""`vdisk compare`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from vdisk.cli.common import format_option, json_option, print_json, reference_options, share_option
from vdisk.errors import VdiskError


@click.command(
    epilog="""\b
Examples:
  vdisk compare disk.vmdk disk.qcow2
  vdisk compare -f raw -F qcow2 a.img b.img"""
)
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@format_option("-f", "--format", help="Format of A.")
@format_option("-F", "--second-format", help="Format of B.")
@click.option("-s", "--strict", is_flag=True, help="Disks of different length differ, even if the rest is zeros.")
@reference_options
@share_option
@json_option
def command(
    a: str,
    b: str,
    format: str | None,
    second_format: str | None,
    strict: bool,
    allow: Sequence[str],
    no_references: bool,
    force_share: bool,
    as_json: bool,
) -> None:
    """Tell whether A and B hold the same disk, whatever their formats.

    Exit status: 0 the same, 1 different (the first differing offset is told), 2 an error.
    """
    from vdisk import formats
    from vdisk.inspect.compare import compare

    try:
        how: dict[str, Any] = {"allow": allow, "references": not no_references, "force_share": force_share}
        with (
            formats.open(a, format=format, **how) as left,
            formats.open(b, format=second_format, **how) as right,
        ):
            found = compare(left, right, strict=strict)
    except VdiskError as error:
        print(f"vdisk: {error}", file=sys.stderr)
        sys.exit(2)
    if as_json:
        print_json({"identical": found.identical, "offset": found.offset, "virtual-sizes": list(found.sizes)})
    elif found.identical:
        note = (
            ""
            if found.sizes[0] == found.sizes[1]
            else f" (lengths {found.sizes[0]} and {found.sizes[1]}; the rest is zeros)"
        )
        print(f"identical{note}")
    else:
        print(f"differ at offset {found.offset}")
    sys.exit(0 if found.identical else 1)
