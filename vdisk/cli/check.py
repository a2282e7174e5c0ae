"""`vdisk check`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from vdisk.cli.common import json_option, open_image, print_json, reading_options
from vdisk.errors import VdiskError

if TYPE_CHECKING:
    from vdisk.formats.check import CheckReport


@click.command(
    epilog="""\b
Examples:
  vdisk check disk.qcow2
  vdisk check --repair leaks disk.qcow2
  vdisk check --repair all --dry-run disk.vhd"""
)
@click.argument("image", type=click.Path())
@click.option("-r", "--repair", type=click.Choice(["leaks", "all"]), help="Mend leaks only, or all that can be mended.")
@click.option("--dry-run", is_flag=True, help="With --repair: say what would be done, and do nothing.")
@reading_options
@json_option
def command(image: str, repair: str | None, dry_run: bool, as_json: bool, **how: Any) -> None:
    """Check the metadata of IMAGE: counts, tables, overlaps, what lies past the end of the file.

    The files behind the image are not opened. Exit status: 0 clean (or all mended), 1 the check could not be done,
    2 corrupt, 3 leaks but no corruption.
    """
    from vdisk.formats.check import Repair

    try:
        with open_image(image, writable=repair is not None and not dry_run, backing=False, **how) as disk:
            report = disk.check(Repair(repair or "none"), dry_run=dry_run)
            format_name = disk.format_name
    except VdiskError as error:
        print(f"vdisk: {error}", file=sys.stderr)
        sys.exit(1)
    if as_json:
        print_json(_as_json(image, format_name, report))
    else:
        _show(report, dry_run)
    sys.exit(report.exit_status)


def _as_json(image: str, format_name: str, report: CheckReport) -> dict[str, Any]:
    """The keys of `qemu-img check --output=json`, and the findings."""
    found: dict[str, Any] = {"filename": image, "format": format_name, "check-errors": 0}
    names = {
        "image-end-offset": report.image_end_offset,
        "corruptions": report.corruptions or None,
        "leaks": report.leaks or None,
        "corruptions-fixed": report.corruptions_fixed or None,
        "leaks-fixed": report.leaks_fixed or None,
        "total-clusters": report.total_clusters,
        "allocated-clusters": report.allocated_clusters,
        "fragmented-clusters": report.fragmented_clusters,
        "compressed-clusters": report.compressed_clusters,
    }
    found.update({name: value for name, value in names.items() if value is not None})
    found["findings"] = [finding._asdict() for finding in report.findings]
    return found


def _show(report: CheckReport, dry_run: bool) -> None:
    for finding in report.findings:
        if finding.is_fixed:
            what = f" -- mended: {finding.fix}"
        elif finding.fix is not None:
            what = f" -- {'would mend' if dry_run else 'can be mended'}: {finding.fix}"
        else:
            what = ""
        click.echo(f"{finding.severity}: {finding.where}: {finding.message}{what}")
    hidden = report.corruptions + report.leaks - len(report.findings)
    if len(report.findings) >= report.count_limit and hidden > 0:
        click.echo(f"... and {hidden} more")
    if not report.corruptions and not report.leaks:
        click.echo("no errors were found")
    else:
        mended = report.corruptions_fixed + report.leaks_fixed
        click.echo(f"{report.corruptions} corruptions, {report.leaks} leaks" + (f", {mended} mended" if mended else ""))
    if report.total_clusters:
        allocated = report.allocated_clusters or 0
        share = 100 * allocated / report.total_clusters
        click.echo(f"{allocated} of {report.total_clusters} clusters are allocated ({share:.2f}%)")
