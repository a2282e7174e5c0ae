"""`vdisk write`."""

from __future__ import annotations

import sys
from typing import Any

import click

from vdisk.cli.common import SIZE, image_options, open_image
from vdisk.errors import OptionError

_STEP_BYTES = 1 << 20


@click.command(
    epilog="""\b
Examples:
  vdisk write disk.qcow2 --offset 0 < mbr.bin
  head -c 1M /dev/zero | vdisk write disk.vhd --offset 4M"""
)
@click.argument("image", type=click.Path())
@click.option("--offset", type=SIZE, required=True, metavar="OFFSET", help="Where on the disk to begin.")
@image_options
def command(image: str, offset: int, **how: Any) -> None:
    """Write standard input into the disk in IMAGE, and flush it."""
    source = sys.stdin.buffer
    with open_image(image, writable=True, **how) as disk:
        while data := source.read(_STEP_BYTES):
            if offset + len(data) > disk.size:
                raise OptionError(f"{image}: standard input is longer than the disk's {disk.size} bytes from there on")
            disk.write(offset, data)
            offset += len(data)
        disk.flush()
