"""`vdisk compat`."""

from __future__ import annotations

from collections.abc import Iterable

import click

from vdisk.cli.common import json_option, print_json


@click.command(
    epilog="""\b
Examples:
  vdisk compat
  vdisk compat --about hyper-v"""
)
@click.option("--list", "lists", is_flag=True, help="List the catalogue of hypervisors.")
@click.option("--about", metavar="NAME", help="Tell all that is known of a hypervisor or target.")
@json_option
def command(lists: bool, about: str | None, as_json: bool) -> None:
    """Tell which hypervisors and clouds take which formats: as listed, and as verified.

    The table shows what a product is said to take (listed) beside what it takes by its documents or source (verified).
    """
    if about is not None:
        _tell_about(about, as_json)
        return
    from vdisk.compat import table

    if lists:
        _print(table.catalogue_data(), table.catalogue_text(), as_json)
        return
    _print(table.table_data(), table.table_text(), as_json)


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
