"""`vdisk convert`."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from vdisk.cli.common import (
    SIZE,
    asks_for_help,
    creation_options,
    format_option,
    format_text,
    human_size,
    json_option,
    print_json,
    progress_option,
    reference_options,
    secret_option,
    share_option,
    show_creation_options,
    strict_option,
)

if TYPE_CHECKING:
    from vdisk.compat.rules import Verdict
    from vdisk.converter import Conversion
    from vdisk.storage.stream import OutputPipe


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
  vdisk convert machine.vmdk - -O qcow2 | ssh host 'cat > machine.qcow2'
  vdisk convert --resume big.vmdk big.qcow2
  zcat machine.img.gz | vdisk convert - machine.qcow2 -f raw
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
@click.option("--size", type=SIZE, help="Bytes of the raw disk that comes out of a pipe (SOURCE -).")
@click.option("-l", "--snapshot", metavar="NAME", help="Convert an internal snapshot, by name or ID, not what is now.")
@click.option("--disk", metavar="WHICH", help="Of a package (OVA, OVF) take this disk: number, id or file name.")
@secret_option
@click.option(
    "--threads", type=click.IntRange(1, 64), metavar="N", help="So many workers; without it, one a processor."
)
@progress_option
@click.option(
    "--flush/--no-flush", default=None, help="Wait until the disk has it; by default where an image is replaced."
)
@click.option(
    "--resume",
    is_flag=True,
    help="Keep the work of an interrupted run beside TARGET (TARGET.vdisk-resume), and go on from there.",
)
@click.option("--dry-run", is_flag=True, help="Plan, say what would be done, and leave no target.")
@reference_options
@strict_option
@share_option
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
    size: int | None,
    snapshot: str | None,
    disk: str | None,
    secret: bytes | None,
    threads: int | None,
    progress: bool | None,
    flush: bool | None,
    resume: bool,
    dry_run: bool,
    allow: Sequence[str],
    no_references: bool,
    strict: bool,
    force_share: bool,
    as_json: bool,
) -> None:
    """Convert the image SOURCE, with all that lies behind it, to a new image TARGET.

    TARGET appears when it is whole; an image that stood there is then replaced, and is as it was if anything fails.
    SOURCE - is a raw disk on standard input (-f raw), TARGET - an image of the format -O on standard output, either
    a pipe. With --resume the same command goes on after an interrupt, a full disk or a loss of power; it is refused if
    the source or an option has changed meanwhile.

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
    if "-" in (source, target) and target_name is not None:
        raise click.UsageError("--for does not go with a pipe.")
    if resume and ("-" in (source, target) or dry_run):
        raise click.UsageError("--resume goes neither with a pipe nor with --dry-run.")
    if size is not None and source != "-":
        raise click.UsageError("--size says how long the disk out of a pipe is: SOURCE is to be -.")
    if source == "-" and source_format != "raw":
        raise click.UsageError("A pipe gives a raw disk: say so by -f raw.")
    if source == "-" and any((source_backing_format, snapshot, disk, secret, dry_run, strict)):
        raise click.UsageError(
            "A raw disk out of a pipe has no snapshot, disk, secret or backing file, nor a dry run or a strict one."
        )
    from vdisk.cli.progress import bar
    from vdisk.converter import convert, convert_from_pipe
    from vdisk.storage.stream import InputPipe

    verdict = None
    with _tells_what_is_kept(target if resume else None), bar("convert", progress) as show:
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
            "strict": strict,
            "force_share": force_share,
            "dry_run": dry_run,
            "flush": flush,
            "resume": resume,
        }
        if target_name is not None:
            from vdisk.compat.fit import convert_for

            done, verdict = convert_for(source, target, target_name, **how)
        else:
            how |= {"target_format": target_format, "backing": backing, "backing_format": backing_format}
            goal = _output_pipe() if target == "-" else target
            if source == "-":
                only = (
                    "source_format",
                    "source_backing_format",
                    "snapshot",
                    "disk",
                    "secret",
                    "dry_run",
                    "resume",
                    "strict",
                )
                how = {name: value for name, value in how.items() if name not in only}
                done = convert_from_pipe(InputPipe(size=size), goal, **how)
            else:
                done = convert(source, goal, **how)
    with contextlib.redirect_stdout(sys.stderr) if target == "-" else contextlib.nullcontext():
        _say(source, done, verdict, as_json=as_json, dry_run=dry_run)
    if verdict is not None and not verdict.fits:
        raise click.exceptions.Exit(1)


@contextlib.contextmanager
def _tells_what_is_kept(target: str | None) -> Iterator[None]:
    """After an interrupt or a full disk: where the work is, and how to go on."""
    from vdisk.errors import StorageError
    from vdisk.storage.kept import kept_folder

    try:
        yield
    except (KeyboardInterrupt, StorageError) as error:
        reason = error.reason if isinstance(error, StorageError) else None
        is_full = isinstance(reason, OSError) and reason.errno in (errno.ENOSPC, errno.EDQUOT)
        goes_on = is_full or isinstance(error, KeyboardInterrupt)
        if target is not None and goes_on and (folder := kept_folder(target)).is_dir():
            click.echo(f"vdisk: kept in {folder}: the same command goes on from there", err=True)
        raise


def _output_pipe() -> OutputPipe:
    if sys.stdout.isatty():
        raise click.UsageError("An image is not for a terminal: send standard output to a pipe or a file.")
    from vdisk.storage.stream import OutputPipe

    return OutputPipe()


def _say(source: str, done: Conversion, verdict: Verdict | None, *, as_json: bool, dry_run: bool) -> None:
    """What was done, or would be."""
    if as_json:
        said: dict[str, Any] = {name.replace("_", "-"): value for name, value in done._asdict().items()}
        if done.source_format_guessed_from is None:
            del said["source-format-guessed-from"]
        print_json(said if verdict is None else {**said, "verdict": verdict.as_dict()})
    elif dry_run:
        source_format = format_text(done.source_format, done.source_format_guessed_from)
        click.echo(f"{source_format} to {done.target_format}, a disk of {human_size(done.size_bytes)}:")
        click.echo(f"  read         {human_size(done.read_bytes)}")
        click.echo(f"  passed on    {human_size(done.passed_bytes)} (compressed units as they are)")
        click.echo(f"  left out     {human_size(done.skipped_bytes)} (zeros)")
    elif done.source_format_guessed_from is not None:
        guess = format_text(done.source_format, done.source_format_guessed_from)
        click.echo(f"{source}: read as {guess}; -f names the format", err=True)
    if verdict is not None and not as_json:
        from vdisk.compat.text import fix_words

        for finding in verdict.findings:
            click.echo(f"{finding.level}: {finding.what}: {finding.why}", err=True)
            if finding.in_guest:
                click.echo(f"  {fix_words(finding)}", err=True)
