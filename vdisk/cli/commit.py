"""`vdisk commit`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from vdisk.cli.common import allow_option, format_option, human_size, progress_option


@click.command(
    epilog="""\b
Examples:
  vdisk commit overlay.qcow2
  vdisk commit -F raw overlay.qcow2"""
)
@click.argument("overlay", type=click.Path())
@format_option("-f", "--format", help="Format of OVERLAY.")
@format_option("-F", "--backing-format", help="Format of the backing file, where OVERLAY does not name it.")
@allow_option
@progress_option
def command(
    overlay: str, format: str | None, backing_format: str | None, allow: Sequence[str], progress: bool | None
) -> None:
    """Write what OVERLAY holds into the image behind it.

    OVERLAY stays, and reads as before. Other overlays on the same image do not: they see the change below them.
    After a kill halfway commit again. An overlay of VMDK, VDI, VHD or VHDX is to be told first that its base has
    changed, by vdisk rebase --unsafe.
    """
    from vdisk.cli.progress import bar
    from vdisk.maintain.chain import commit

    with bar("commit", progress) as show:
        written = commit(overlay, format=format, backing_format=backing_format, allow=allow, progress=show)
    click.echo(f"{human_size(written)} committed")
