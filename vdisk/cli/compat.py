"""`vdisk compat`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from vdisk.cli.common import json_option, print_json, reading_options


@click.command(
    epilog="""\b
Examples:
  vdisk compat
  vdisk compat --about hyper-v
  vdisk compat machine.qcow2
  vdisk compat machine.qcow2 --for virtualbox --for azure
  vdisk compat machine.qcow2 --for vmware --boot --report machine.html"""
)
@click.argument("image", type=click.Path(), required=False)
@click.option(
    "--for", "targets", multiple=True, metavar="NAME", help="Hold IMAGE against this target. May be repeated."
)
@click.option("--boot", "boots", is_flag=True, help="Boot IMAGE too, once for each kind of machine.")
@click.option("--expect", metavar="TEXT", help="With --boot: succeed once TEXT is on the screen or the serial port.")
@click.option(
    "--timeout", type=float, default=180.0, show_default=True, metavar="SECONDS", help="Of each boot: give up then."
)
@click.option("--report", type=click.Path(dir_okay=False), metavar="FILE", help="Write a page of HTML with all of it.")
@click.option("--list", "lists", is_flag=True, help="List the catalogue of hypervisors.")
@click.option("--about", metavar="NAME", help="Tell all that is known of a hypervisor or target.")
@reading_options
@json_option
def command(
    image: str | None,
    targets: tuple[str, ...],
    boots: bool,
    expect: str | None,
    timeout: float,
    report: str | None,
    lists: bool,
    about: str | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Tell which hypervisors and clouds take IMAGE, why not, and what would make it fit.

    The verdict is by what is verified (by a product's documents or source), with the listed claim beside it. The exit
    status is 0 if every target named by --for takes the image as it is, and, with --boot, none failed to boot it.
    Without IMAGE: the table of formats.

    With the extra `inspect` installed, the system on the disk is looked into. Of a Linux: the drivers that it starts
    with, its fstab, boot entries, consoles, cloud-init. Of a Windows: the drivers that it starts with, whether it is
    hibernated, its agents and tools.

    --boot imitates a hypervisor's chipset, disk controller, PCI ids and SMBIOS. It does not imitate its CPUID, its
    firmware, nor its own bus (VMBus, xenbus): the row names the driver that a guest needs there.
    """
    from vdisk.compat import table

    if about is not None:
        _tell_about(about, as_json)
    elif lists:
        _print(table.catalogue_data(), table.catalogue_text(), as_json)
    elif image is None:
        from vdisk.compat import TARGETS, find_target

        if boots or report:
            raise click.UsageError("--boot and --report need an IMAGE")
        chosen = [find_target(name) for name in targets] or list(TARGETS)
        _print(table.table_data(chosen), table.table_text(chosen), as_json)
    else:
        trial = {"expect": expect, "timeout": timeout} if boots else None
        how["references"] = not how.pop("no_references")
        _examine(image, targets, as_json, trial, report, how)


def _examine(
    image: str,
    targets: tuple[str, ...],
    as_json: bool,
    trial: dict[str, Any] | None,
    report: str | None,
    how: dict[str, Any],
) -> None:
    from vdisk.compat.examine import opened
    from vdisk.compat.text import examination_text

    with opened(image, targets, **how) as (disk, examination):
        if trial is not None:
            from vdisk.compat.trial import try_boots

            try_boots(disk, examination, tell=lambda name: click.echo(f"booting as {name} ...", err=True), **trial)
        if report is not None:
            from vdisk.compat.report import report as make_report

            _write(report, make_report(examination, disk))
    _print(examination.as_dict() if as_json else None, examination_text(examination, bool(targets)), as_json)
    if targets and not examination.fits_all:
        raise click.exceptions.Exit(1)


def _write(path: str, text: str) -> None:
    """Write the page; it appears when it is whole."""
    from vdisk.storage.staging import Staging

    with Staging(path) as staging:
        staging.create().write(0, text.encode())
        staging.commit()


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
