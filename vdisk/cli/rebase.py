"""`vdisk rebase`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from vdisk.cli.common import allow_option, format_option, human_size, progress_option


@click.command(
    epilog="""\b
Examples:
  vdisk rebase -b new-base.qcow2 -F qcow2 overlay.qcow2
  vdisk rebase -b '' overlay.qcow2
  vdisk rebase --unsafe -b moved/base.qcow2 -F qcow2 overlay.qcow2"""
)
@click.argument("overlay", type=click.Path())
@click.option("-b", "-B", "--backing", required=True, metavar="FILE", help="The new backing file; '' for none.")
@format_option("-F", "--backing-format", help="Format of the new backing file: it is not guessed.")
@format_option("-f", "--format", help="Format of OVERLAY.")
@format_option("--old-backing-format", help="Format of the old backing file, where OVERLAY does not name it.")
@click.option("-u", "--unsafe", is_flag=True, help="Change the name only: for a backing file that was moved.")
@allow_option
@progress_option
def command(
    overlay: str,
    backing: str,
    backing_format: str | None,
    format: str | None,
    old_backing_format: str | None,
    unsafe: bool,
    allow: Sequence[str],
    progress: bool | None,
) -> None:
    """Put another image behind OVERLAY, so that its disk reads the same.

    Where the old and the new backing image differ, the old bytes are copied into OVERLAY first.
    """
    from vdisk.cli.progress import bar
    from vdisk.maintain.chain import rebase

    with bar("rebase", progress) as show:
        copied = rebase(
            overlay,
            backing or None,
            backing_format,
            format=format,
            backing_format=old_backing_format,
            unsafe=unsafe,
            allow=allow,
            progress=show,
        )
    click.echo(f"{human_size(copied)} copied into the overlay")
