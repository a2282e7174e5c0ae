"""`vdisk bitmap`."""

from __future__ import annotations

from typing import Any

import click

from vdisk.cli.common import SIZE, image_options, json_option, print_json, reading_options
from vdisk.cli.snapshot import open_qcow2


@click.group(
    epilog="""\b
Examples:
  vdisk bitmap list disk.qcow2
  vdisk bitmap add --granularity 64K disk.qcow2 backup
  vdisk bitmap clear disk.qcow2 backup"""
)
def command() -> None:
    """List, add, remove and clear the persistent dirty bitmaps of a qcow2 image."""


@command.command("list")
@click.argument("image", type=click.Path())
@reading_options
@json_option
def list_(image: str, as_json: bool, **how: Any) -> None:
    """List the bitmaps of IMAGE."""
    from vdisk.formats.qcow2.bitmaps import describe_bitmaps

    with open_qcow2(image, writable=False, **how) as disk:
        found = describe_bitmaps(disk)
    if as_json:
        print_json(found)
        return
    for bitmap in found:
        click.echo(f"{bitmap['name']}: granularity {bitmap['granularity']}, {', '.join(bitmap['flags']) or 'idle'}")


@command.command("add")
@click.argument("image", type=click.Path())
@click.argument("name")
@click.option("--granularity", type=SIZE, default="64K", show_default=True, help="Bytes that a bit stands for.")
@click.option("--disabled", is_flag=True, help="Do not record writes in it yet.")
@image_options
def add(image: str, name: str, granularity: int, disabled: bool, **how: Any) -> None:
    """Add the bitmap NAME to IMAGE; from now on it records what is written."""
    from vdisk.formats.qcow2.bitmaps import add_bitmap

    with open_qcow2(image, writable=True, **how) as disk:
        add_bitmap(disk, name, granularity_bytes=granularity, recording=not disabled)


@command.command("remove")
@click.argument("image", type=click.Path())
@click.argument("name")
@image_options
def remove(image: str, name: str, **how: Any) -> None:
    """Remove the bitmap NAME from IMAGE."""
    from vdisk.formats.qcow2.bitmaps import remove_bitmap

    with open_qcow2(image, writable=True, **how) as disk:
        remove_bitmap(disk, name)


@command.command("clear")
@click.argument("image", type=click.Path())
@click.argument("name")
@image_options
def clear(image: str, name: str, **how: Any) -> None:
    """Clear the bitmap NAME of IMAGE: nothing has been written since now."""
    from vdisk.formats.qcow2.bitmaps import clear_bitmap

    with open_qcow2(image, writable=True, **how) as disk:
        clear_bitmap(disk, name)
