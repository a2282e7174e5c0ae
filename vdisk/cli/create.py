"""`vdisk create`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from vdisk.cli.common import (
    asks_for_help,
    creation_options,
    format_option,
    reference_options,
    share_option,
    show_creation_options,
)


@click.command(
    epilog="""\b
Examples:
  vdisk create disk.qcow2 10G
  vdisk create disk.vmdk 64G -o subformat=twoGbMaxExtentSparse
  vdisk create -b base.qcow2 -F qcow2 overlay.qcow2
  vdisk create -O vhd -o help"""
)
@click.argument("image", type=click.Path(), required=False)
@click.argument("size", required=False)
@format_option("-O", "-f", "--format", help="Format of the image; without it, that of its suffix.")
@click.option("-b", "-B", "--backing", metavar="FILE", help="Image that shows through where the new one holds nothing.")
@format_option("-F", "--backing-format", help="Format of the backing file: it is not guessed.")
@creation_options
@reference_options
@share_option
def command(
    image: str | None,
    size: str | None,
    format: str | None,
    backing: str | None,
    backing_format: str | None,
    options: dict[str, str],
    allow: Sequence[str],
    no_references: bool,
    force_share: bool,
) -> None:
    """Make an empty image of SIZE bytes at IMAGE; suffixes K, M, G, T. With a backing file SIZE may be left out.

    An image that stood there is replaced once the new one is whole.
    """
    from vdisk import formats
    from vdisk.formats.image import Backing

    if asks_for_help(options):
        show_creation_options(formats.target_format(image or "", format).writer_class())
        return
    if image is None:
        raise click.UsageError("Missing argument 'IMAGE'.")
    if backing is None:
        if size is None:
            raise click.UsageError("Missing argument 'SIZE'.")
        formats.create(image, size, format=format, options=options)
        return
    if backing_format is None:
        raise click.UsageError("-b needs -F FORMAT: the format of a backing file is not guessed.")
    how: dict[str, Any] = {"allow": allow, "references": not no_references, "force_share": force_share}
    with formats.open_backing(image, backing, backing_format, **how) as behind:
        formats.create(
            image,
            behind.size if size is None else size,
            format=format,
            options=options,
            backing=Backing(backing, behind.format_name, behind),
        )
