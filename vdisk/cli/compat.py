"""`vdisk compat`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from vdisk.cli.common import image_options, json_option, print_json


@click.command(
    epilog="""\b
Examples:
  vdisk compat
  vdisk compat --about hyper-v
  vdisk compat machine.qcow2
  vdisk compat machine.qcow2 --for virtualbox --for azure"""
)
@click.argument("image", type=click.Path(), required=False)
@click.option(
    "--for", "targets", multiple=True, metavar="NAME", help="Hold IMAGE against this target. May be repeated."
)
@click.option("--list", "lists", is_flag=True, help="List the catalogue of hypervisors.")
@click.option("--about", metavar="NAME", help="Tell all that is known of a hypervisor or target.")
@image_options
@json_option
def command(
    image: str | None, targets: tuple[str, ...], lists: bool, about: str | None, as_json: bool, **how: Any
) -> None:
    """Tell which hypervisors and clouds take IMAGE, why not, and what would make it fit.

    The verdict is by what is verified (by a product's documents or source), with the listed claim beside it. The exit
    status is 0 if every target named by --for takes the image as it is. Without IMAGE: the table of formats.
    """
    from vdisk.compat import table

    if about is not None:
        _tell_about(about, as_json)
    elif lists:
        _print(table.catalogue_data(), table.catalogue_text(), as_json)
    elif image is None:
        from vdisk.compat import TARGETS, find_target

        chosen = [find_target(name) for name in targets] or list(TARGETS)
        _print(table.table_data(chosen), table.table_text(chosen), as_json)
    else:
        _examine(image, targets, as_json, how)


def _examine(image: str, targets: tuple[str, ...], as_json: bool, how: dict[str, Any]) -> None:
    from vdisk.compat.examine import examine
    from vdisk.compat.text import examination_text

    how["references"] = not how.pop("no_references")
    examination = examine(image, targets, **how)
    _print(examination.as_dict() if as_json else None, examination_text(examination, bool(targets)), as_json)
    if targets and not examination.fits_all:
        raise click.exceptions.Exit(1)


def _tell_about(name: str, as_json: bool) -> None:
    from vdisk.compat import TARGETS, table
    from vdisk.compat.catalogue import CATALOGUE, find_entry
    from vdisk.errors import OptionError

    entry = find_entry(name)
    wanted = entry.target if entry is not None else name.lower()
    target = next((row for row in TARGETS if row.name == wanted), None)
    if entry is None and target is None:
        known = dict.fromkeys([*(one.name for one in CATALOGUE), *(row.name for row in TARGETS)])
        raise OptionError(f"nothing is known of {name!r}; known are {', '.join(known)}")
    if as_json:
        print_json(
            {
                "hypervisor": None if entry is None else table.catalogue_data([entry])[0],
                "target": None if target is None else table.table_data([target])[0],
            }
        )
        return
    if entry is not None:
        _print(None, table.about_entry(entry), False)
    if target is not None:
        _print(None, table.about_target(target), False)


def _print(data: object, lines: Iterable[str], as_json: bool) -> None:
    if as_json:
        print_json(data)
        return
    for line in lines:
        click.echo(line)
