"""`vdisk convert`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from vdisk.cli.common import (
    asks_for_help,
    creation_options,
    format_option,
    human_size,
    json_option,
    print_json,
    reference_options,
    secret_option,
    show_creation_options,
)


@click.command(
    epilog="""\b
Examples:
  vdisk convert machine.vmdk machine.qcow2
  vdisk convert -c machine.img machine.qcow2 -o compression_type=zstd
  vdisk convert machine.qcow2 machine.vmdk -o subformat=streamOptimized
  vdisk convert -B base.qcow2 -F qcow2 machine.raw overlay.qcow2
  vdisk convert -l before-upgrade machine.qcow2 old.raw
  vdisk convert machine.qcow2 machine.ova -o cpus=2,memory=4G
  vdisk convert machine.qcow2 machine.vhd --for azure
  vdisk convert machine.qcow2 machine.tar.gz --for gcp
  vdisk convert -O vhd -o help"""
)
@click.argument("source", type=click.Path(), required=False)
@click.argument("target", type=click.Path(), required=False)
@format_option("-f", "--source-format", help="Format of SOURCE; without it, its mark decides.")
@format_option("-O", "--target-format", help="Format of TARGET; without it, that of its suffix.")
@click.option(
    "--for",
    "target_name",
    metavar="NAME",
    help="Make what this hypervisor or cloud takes: format, kind, size, package. vdisk compat lists the names.",
)
@click.option("-c", "--compress", is_flag=True, help="Compress the target (qcow2; streamOptimized always is).")
@creation_options
@click.option(
    "-B", "--backing", metavar="FILE", help="Store only what differs from this image, and name it as backing file."
)
@format_option("-F", "--backing-format", help="Format of the backing file: it is not guessed.")
@format_option(
    "--source-backing-format", help="Format of the source's backing file, where the source does not name it."
)
@click.option("-l", "--snapshot", metavar="NAME", help="Convert an internal snapshot, by name or ID, not what is now.")
@click.option("--disk", metavar="WHICH", help="Of a package (OVA, OVF) take this disk: number, id or file name.")
@secret_option
@click.option(
    "--threads", type=click.IntRange(1, 64), metavar="N", help="So many workers; without it, one a processor."
)
@click.option("--progress/--no-progress", default=None, help="Show a bar; by default on a terminal only.")
@click.option(
    "--flush/--no-flush", default=None, help="Wait until the disk has it; by default where an image is replaced."
)
@click.option("--dry-run", is_flag=True, help="Plan, say what would be done, and leave no target.")
@reference_options
@json_option
def command(
    source: str | None,
    target: str | None,
    source_format: str | None,
    target_format: str | None,
    target_name: str | None,
    compress: bool,
    options: dict[str, str],
    backing: str | None,
    backing_format: str | None,
    source_backing_format: str | None,
    snapshot: str | None,
    disk: str | None,
    secret: bytes | None,
    threads: int | None,
    progress: bool | None,
    flush: bool | None,
    dry_run: bool,
    allow: Sequence[str],
    no_references: bool,
    as_json: bool,
) -> None:
    """Convert the image SOURCE, with all that lies behind it, to a new image TARGET.

    TARGET appears when it is whole; an image that stood there is then replaced, and is as it was if anything fails.
    With --for the exit status is 1 if there is something that no conversion can mend.
    """
    if asks_for_help(options):
        from vdisk.converter import target_writer

        show_creation_options(target_writer(target or source or "", target_format))
        return
    if source is None or target is None:
        raise click.UsageError(f"Missing argument '{'SOURCE' if source is None else 'TARGET'}'.")
    if target_name is not None and (target_format is not None or backing is not None):
        raise click.UsageError("--for decides the format: -O and -B do not go with it.")
    from vdisk.cli.progress import bar
    from vdisk.converter import convert

    verdict = None
    with bar("convert", progress) as show:
        how: dict[str, Any] = {
            "source_format": source_format,
            "options": options,
            "compress": compress,
            "source_backing_format": source_backing_format,
            "snapshot": snapshot,
            "disk": disk,
            "secret": secret,
            "threads": threads,
            "progress": show,
            "allow": allow,
            "references": not no_references,
            "dry_run": dry_run,
            "flush": flush,
        }
        if target_name is not None:
            from vdisk.compat.fit import convert_for

            done, verdict = convert_for(source, target, target_name, **how)
        else:
            how |= {"target_format": target_format, "backing": backing, "backing_format": backing_format}
            done = convert(source, target, **how)
    if as_json:
        said: dict[str, Any] = {name.replace("_", "-"): value for name, value in done._asdict().items()}
        print_json(said if verdict is None else {**said, "verdict": verdict.as_dict()})
    elif dry_run:
        click.echo(f"{done.source_format} to {done.target_format}, a disk of {human_size(done.size_bytes)}:")
        click.echo(f"  read         {human_size(done.read_bytes)}")
        click.echo(f"  passed on    {human_size(done.passed_bytes)} (compressed units as they are)")
        click.echo(f"  left out     {human_size(done.skipped_bytes)} (zeros)")
    if verdict is not None:
        if not as_json:
            for finding in verdict.findings:
                click.echo(f"{finding.level}: {finding.what}: {finding.why}", err=True)
        if not verdict.fits:
            raise click.exceptions.Exit(1)
