"""The `vdisk` command: a table of commands, each in a module of its own that is imported when it is called."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import NamedTuple

import click

from vdisk.errors import OptionError, VdiskError


class _Row(NamedTuple):
    """A command: its name, its module in this package (which has a `command`), and what it does in one line."""

    name: str
    module: str
    help: str


_COMMANDS = (
    _Row("amend", "amend", "Change options of a qcow2 image in place."),
    _Row("bitmap", "bitmap", "Manage the dirty bitmaps of a qcow2 image."),
    _Row("boot", "boot", "Boot an image in the embedded hypervisor and say how far it came."),
    _Row("check", "check", "Check an image's metadata, and mend it."),
    _Row("commit", "commit", "Write an overlay into the image behind it."),
    _Row("compare", "compare", "Tell whether two images hold the same disk, and where they first differ."),
    _Row("compat", "compat", "Tell which hypervisors and clouds take an image, and what would make it fit."),
    _Row("completion", "completion", "Print the completion script of a shell."),
    _Row("convert", "convert", "Convert an image to another format."),
    _Row("create", "create", "Make an empty image."),
    _Row("info", "info", "Say what an image is."),
    _Row("map", "map", "Say which parts of a disk hold data, and where they lie."),
    _Row("measure", "measure", "Say how much a qcow2 of a disk would take."),
    _Row("read", "read", "Write a part of a disk to standard output."),
    _Row("rebase", "rebase", "Put another image behind an overlay."),
    _Row("resize", "resize", "Make a disk longer or shorter."),
    _Row("snapshot", "snapshot", "Manage the internal snapshots of a qcow2 image."),
    _Row("write", "write", "Write standard input into a disk."),
)


class _Table(click.Group):
    """A group that knows its commands by name and imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [row.name for row in _COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        row = next((row for row in _COMMANDS if row.name == cmd_name), None)
        if row is None:
            return None
        import importlib

        command: click.Command = importlib.import_module(f"vdisk.cli.{row.module}").command
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            if sys.stderr.isatty():  # the terminal has shown ^C; elsewhere click's empty line is in the way
                click.echo(err=True)
            raise click.Abort from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(row.name, row.help) for row in _COMMANDS])


@click.group(
    cls=_Table,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Each command has its own help, with examples: vdisk convert --help",
)
@click.version_option(package_name="vdisk-toolkit", prog_name="vdisk")
def _vdisk() -> None:
    """Open, check, convert and boot virtual disk images: qcow2, VMDK, VDI, VHD, VHDX, Parallels, raw."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process: 0 done, 1 refused or failed (one line on stderr), 2 wrong usage."""
    asked_to_end = _end_on_sigterm()
    try:
        status = _vdisk.main(arguments, prog_name="vdisk", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except OptionError as error:
        status = _say(error, 2)
    except VdiskError as error:
        status = _say(error, 1)
    except (KeyboardInterrupt, click.Abort):
        status = _say("interrupted", 128 + (asked_to_end[0] if asked_to_end else signal.SIGINT))
    except BrokenPipeError:
        # Whoever read our output has gone: that is not our failure, and there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except MemoryError:
        status = _say("out of memory", 1)
    sys.exit(status if isinstance(status, int) else 0)


def _end_on_sigterm() -> list[int]:
    """Let SIGTERM end the command as Ctrl-C does, so that temporary files go; the list gets the signal's number."""
    received: list[int] = []

    def end(number: int, _: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)
    return received


def _say(message: object, status: int) -> int:
    print(f"vdisk: {message}", file=sys.stderr)
    return status
