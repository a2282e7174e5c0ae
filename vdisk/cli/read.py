"""`vdisk read`."""

from __future__ import annotations

import sys
from typing import Any

import click

from vdisk.cli.common import SIZE, open_image, reading_options

_STEP_BYTES = 1 << 20


@click.command(
    epilog="""\b
Examples:
  vdisk read disk.vmdk --length 512 | xxd
  vdisk read disk.qcow2 --offset 1M --length 4K > part.bin"""
)
@click.argument("image", type=click.Path())
@click.option("--offset", type=SIZE, default=0, metavar="OFFSET", help="Where on the disk to begin.")
@click.option("--length", type=SIZE, default=None, metavar="SIZE", help="How much; without it, to the disk's end.")
@reading_options
def command(image: str, offset: int, length: int | None, **how: Any) -> None:
    """Write a part of the disk in IMAGE to standard output."""
    with open_image(image, **how) as disk:
        if length is None:
            length = max(0, disk.size - offset)
        if offset + length > disk.size:
            disk.read(offset, length)  # refuses, naming the range
        buffer = memoryview(bytearray(min(_STEP_BYTES, length)))
        out = sys.stdout.buffer
        end = offset + length
        while offset < end:
            part = buffer[: min(len(buffer), end - offset)]
            disk.readinto(offset, part)
            out.write(part)
            offset += len(part)
        out.flush()
