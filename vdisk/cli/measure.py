"""`vdisk measure`."""

from __future__ import annotations

from typing import Any

import click

from vdisk.cli.common import SIZE, creation_options, human_size, json_option, open_image, print_json, reading_options


@click.command(
    epilog="""\b
Examples:
  vdisk measure disk.vmdk
  vdisk measure --size 10G -o cluster_size=4K"""
)
@click.argument("image", type=click.Path(), required=False)
@click.option("--size", type=SIZE, metavar="SIZE", help="Measure an empty disk of this size, not an image's.")
@creation_options
@reading_options
@json_option
def command(image: str | None, size: int | None, options: dict[str, str], as_json: bool, **how: Any) -> None:
    """Say how many bytes a qcow2 of the disk in IMAGE would take, uncompressed and once every cluster was written."""
    from vdisk.formats.qcow2.measure import measure

    if (image is None) == (size is None):
        raise click.UsageError("Name either an IMAGE or a --size.")
    if image is not None:
        with open_image(image, **how) as disk:
            found = measure(disk, options)
    else:
        assert size is not None
        found = measure(size, options)
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        click.echo(f"{name.replace('-', ' ')}: {human_size(value)} ({value} bytes)")
