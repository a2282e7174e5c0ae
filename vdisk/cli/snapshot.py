"""`vdisk snapshot`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from vdisk.cli.common import human_size, image_options, json_option, open_image, print_json, reading_options
from vdisk.errors import OptionError

if TYPE_CHECKING:
    from vdisk.formats.qcow2.image import Qcow2Image


def open_qcow2(image: str, *, writable: bool, backing: bool = False, **how: Any) -> Qcow2Image:
    """Open an image that must be a qcow2: only there is what these commands work on."""
    from vdisk.formats.qcow2.image import Qcow2Image

    disk = open_image(image, writable=writable, backing=backing, **how)
    if not isinstance(disk, Qcow2Image):
        name = disk.format_name
        disk.close()
        raise OptionError(f"{image}: is {name}; this works on qcow2 only")
    return disk


@click.group(
    epilog="""\b
Examples:
  vdisk snapshot list disk.qcow2
  vdisk snapshot create disk.qcow2 before-upgrade
  vdisk snapshot apply disk.qcow2 before-upgrade
  vdisk snapshot delete disk.qcow2 before-upgrade"""
)
def command() -> None:
    """List, make, go back to and delete the internal snapshots of a qcow2 image."""


@command.command("list")
@click.argument("image", type=click.Path())
@reading_options
@json_option
def list_(image: str, as_json: bool, **how: Any) -> None:
    """List the snapshots of IMAGE, oldest first."""
    import datetime

    with open_qcow2(image, writable=False, **how) as disk:
        found = disk.snapshots()
        if as_json:
            print_json([snapshot.describe() for snapshot in found])
            return
        if found:
            click.echo(f"{'ID':<6}{'DATE':<22}{'DISK':>10}{'VM STATE':>10}  NAME")
        for snapshot in found:
            date = datetime.datetime.fromtimestamp(snapshot.date_seconds).isoformat(" ", "seconds")
            state = human_size(snapshot.vm_state_bytes) if snapshot.vm_state_bytes else "-"
            click.echo(f"{snapshot.id:<6}{date:<22}{human_size(snapshot.disk_bytes):>10}{state:>10}  {snapshot.name}")


def _change(name: str, what: str) -> Callable[..., Any]:
    """A subcommand that does something with a snapshot's name."""

    @command.command(name, help=what)
    @click.argument("image", type=click.Path())
    @click.argument("snapshot", metavar="NAME")
    @image_options
    def change(image: str, snapshot: str, **how: Any) -> None:
        from vdisk.formats.qcow2 import snapshots

        with open_qcow2(image, writable=True, **how) as disk:
            do = {
                "create": snapshots.create_snapshot,
                "apply": snapshots.apply_snapshot,
                "delete": snapshots.delete_snapshot,
            }
            do[name](disk, snapshot)

    return change


_change("create", "Keep the disk in IMAGE as it is now, under NAME.")
_change("apply", "Make the disk in IMAGE what it was at the snapshot NAME (or ID); what it is now is lost.")
_change("delete", "Forget the snapshot NAME (or ID) of IMAGE; the disk stays as it is.")
