"""`vdisk resize`."""

from __future__ import annotations

from typing import Any

import click

from vdisk.cli.common import image_options, open_image
from vdisk.errors import OptionError
from vdisk.formats.options import parse_size


@click.command(
    epilog="""\b
Examples:
  vdisk resize disk.qcow2 20G
  vdisk resize disk.vmdk +5G
  vdisk resize --shrink disk.vhd -1G""",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("image", type=click.Path())
@click.argument("size", metavar="[+|-]SIZE")
@click.option("--shrink", is_flag=True, help="Allow the disk to become shorter: what lies behind its new end is lost.")
@image_options
def command(image: str, size: str, shrink: bool, **how: Any) -> None:
    """Change the length of the disk in IMAGE to SIZE, or by +SIZE or -SIZE.

    Partitions and file systems stay as they are: grow them afterwards, shrink them before.
    """
    with open_image(image, writable=True, **how) as disk:
        sign, number = (size[0], size[1:]) if size[:1] in "+-" else ("", size)
        wanted = parse_size(number)
        if sign == "+":
            wanted += disk.size
        elif sign == "-":
            wanted = disk.size - wanted
        if wanted < 0:
            raise OptionError(f"{image}: the disk has {disk.size} bytes only")
        if wanted < disk.size and not shrink:
            raise OptionError(f"{image}: {wanted} bytes are fewer than the disk's {disk.size}: --shrink allows it")
        disk.resize(wanted, shrink=shrink)
