"""`vdisk amend`."""

from __future__ import annotations

from typing import Any

import click

from vdisk.cli.common import creation_options, image_options
from vdisk.cli.snapshot import open_qcow2
from vdisk.formats.options import Option, parse_options

_OPTIONS = (
    Option("compat", "choice", "Version of the format.", None, ("0.10", "1.1", "v2", "v3")),
    Option("refcount_bits", "int", "Width of a reference count."),
    Option("lazy_refcounts", "bool", "Let who writes put off reference counts."),
)


@click.command(
    epilog="""\b
Examples:
  vdisk amend -o compat=1.1 old.qcow2
  vdisk amend -o refcount_bits=64,lazy_refcounts=on disk.qcow2"""
)
@click.argument("image", type=click.Path())
@creation_options
@image_options
def command(image: str, options: dict[str, str], **how: Any) -> None:
    """Change options of the qcow2 IMAGE in place: compat, refcount_bits, lazy_refcounts."""
    from vdisk.formats.qcow2.maintain import amend

    chosen = parse_options("amend", _OPTIONS, options)
    if not options:
        raise click.UsageError("Nothing to change: name options with -o.")
    with open_qcow2(image, writable=True, backing=True, **how) as disk:
        amend(disk, **chosen)
