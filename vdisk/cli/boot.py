"""`vdisk boot`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vdisk.cli.common import SIZE, json_option, open_image, print_json, reading_options

if TYPE_CHECKING:
    from vdisk.hv.boot import BootResult
    from vdisk.hv.machine import Machine
    from vdisk.hv.signs import Stage

_PROFILES = ("kvm", "vmware", "virtualbox", "hyper-v", "xen", "parallels")
_CONTROLLERS = ("virtio-blk", "ide", "ahci", "lsi", "pvscsi", "nvme")


@click.command(
    epilog="""\b
Examples:
  vdisk boot disk.vmdk
  vdisk boot --profile virtualbox --expect 'login:' disk.vdi
  vdisk boot --interactive rescue.iso
  vdisk boot --keys '<down>\\n' --screenshot menu.png disk.qcow2
  vdisk boot --kernel vmlinuz --initrd initrd.img --append 'console=ttyS0' disk.raw"""
)
@click.argument("images", nargs=-1, type=click.Path(), metavar="IMAGE...")
@click.option("--profile", type=click.Choice(_PROFILES), default="kvm", show_default=True, help="Whose machine to be.")
@click.option("--controller", type=click.Choice(_CONTROLLERS), help="Hang the disks on this, not on the profile's own.")
@click.option("--memory", type=SIZE, default="512M", show_default=True, help="The guest's memory.")
@click.option("--cpus", type=click.IntRange(1, 16), default=1, show_default=True, help="The guest's processors.")
@click.option("--firmware", type=click.Path(dir_okay=False), help="A BIOS file (SeaBIOS) instead of our own.")
@click.option(
    "--option-rom", type=click.Path(dir_okay=False), help="A VGA BIOS for it; without, vgabios-isavga.bin beside it."
)
@click.option("--expect", metavar="TEXT", help="Succeed once TEXT is on the screen or the serial port.")
@click.option("--timeout", type=float, default=180.0, show_default=True, metavar="SECONDS", help="Give up then.")
@click.option("--keys", default="", metavar="KEYS", help="Type this: text, \\n, <up>, <wait 2>, <expect login:>.")
@click.option("--screenshot", type=click.Path(), metavar="FILE", help="The last screen, as .txt or .png.")
@click.option(
    "--serial", type=click.File("wb", lazy=False), metavar="FILE", help="Write what the serial port sends to FILE."
)
@click.option("--interactive", "-i", is_flag=True, help="This terminal is the guest's console; Ctrl-A x leaves.")
@click.option(
    "--kernel",
    type=click.Path(dir_okay=False),
    help="Start this, not what the disk holds: a Linux kernel, iPXE, memdisk.",
)
@click.option("--initrd", type=click.Path(dir_okay=False), help="Its initial RAM disk.")
@click.option("--append", default="", metavar="TEXT", help="Its command line.")
@click.option("--write", is_flag=True, help="Let the guest change the image.")
@click.option(
    "--engine",
    type=click.Choice(("auto", "embedded", "qemu")),
    default="auto",
    show_default=True,
    help="Our own hypervisor, or an installed QEMU; auto takes QEMU only where there is no usable KVM.",
)
@reading_options
@json_option
def command(images: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Boot IMAGE and say how far the system comes. More than one IMAGE: the first one boots.

    The image stays as it is: what the guest writes goes to memory and is gone afterwards, unless --write is given.
    The exit status is 0 if --expect was met or, without it, if user space was reached.
    """
    from contextlib import ExitStack

    if not images and not options["kernel"]:
        raise click.UsageError("name an image, or a kernel by --kernel")
    opening = ("format", "backing_format", "allow", "no_references", "secret", "force_share")
    how = {key: options.pop(key) for key in opening}
    with ExitStack() as stack:
        disks = [stack.enter_context(open_image(image, writable=options["write"], **how)) for image in images]
        if options["interactive"]:
            _run_interactive(disks, options)
            return
        result = _run(disks, options, tells=not as_json)
    if as_json:
        print_json(result.as_dict())
    else:
        _show(result)
    if not result.ok:
        raise click.exceptions.Exit(1)


def _option_rom_beside(firmware: str | None) -> str | None:
    """The VGA BIOS that SeaBIOS comes with, if it lies in the same folder: with it, text goes to the screen."""
    if firmware is None:
        return None
    beside = Path(firmware).with_name("vgabios-isavga.bin")
    return str(beside) if beside.is_file() else None


def _read(path: str | None) -> bytes | None:
    from vdisk.errors import StorageError

    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise StorageError(path, "read", error) from error


def _machine_options(options: dict[str, Any]) -> dict[str, Any]:
    """What `Machine` and `boot` both take, but for the firmware."""
    from vdisk.hv.config import Kernel

    kernel = _read(options["kernel"])
    return {
        "profile": options["profile"],
        "controller": options["controller"],
        "memory_bytes": options["memory"],
        "cpus": options["cpus"],
        "kernel": Kernel(kernel, _read(options["initrd"]) or b"", options["append"]) if kernel is not None else None,
        "write": options["write"],
    }


def _run(disks: list[Any], options: dict[str, Any], *, tells: bool) -> BootResult:
    from vdisk.serve.engines import boot

    def at_end(machine: Machine) -> None:
        if options["screenshot"]:
            from vdisk.hv.screenshot import save_screenshot

            save_screenshot(machine.screen(), options["screenshot"])

    log = options["serial"]
    result = boot(
        disks,
        engine=options["engine"],
        firmware=options["firmware"],
        option_rom=options["option_rom"] or _option_rom_beside(options["firmware"]),
        expect=options["expect"],
        timeout=options["timeout"],
        keys=options["keys"],
        on_serial=log.write if log is not None else None,
        on_stage=_tell if tells else None,
        on_machine=at_end,
        **_machine_options(options),
    )
    if options["screenshot"] and result.engine == "qemu":
        _save_text(result.screen, options["screenshot"])
    return result


def _save_text(text: str, path: str) -> None:
    """QEMU's screen comes as text only."""
    from vdisk.errors import OptionError, StorageError

    if Path(path).suffix.lower() != ".txt":
        raise OptionError(f"screenshot: {path}: under QEMU the screen is saved as .txt only")
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(path, "write", error) from error


def _run_interactive(disks: list[Any], options: dict[str, Any]) -> None:
    from vdisk.errors import OptionError
    from vdisk.hv.machine import Machine
    from vdisk.hv.terminal import Terminal

    if options["engine"] == "qemu":
        raise OptionError("interactive: only the embedded engine has it")
    terminal = Terminal(sys.stdin.fileno(), sys.stdout.fileno())
    firmware = _read(options["firmware"])
    option_rom = _read(options["option_rom"] or _option_rom_beside(options["firmware"]))
    how = _machine_options(options)
    with Machine(disks=disks, firmware=firmware, option_rom=option_rom, on_serial=terminal.on_serial, **how) as machine:
        if options["keys"]:
            machine.type_keys(options["keys"])
        machine.start()
        terminal.run(machine)
        if machine.stop is not None:
            click.echo(f"{machine.stop.reason}{f': {machine.stop.detail}' if machine.stop.detail else ''}")


def _tell(stage: Stage, sign: str, seconds: float) -> None:
    """One line for each stage, when it is reached."""
    click.echo(f"{seconds:8.2f} s  {stage.title}: {sign}")


def _show(result: BootResult) -> None:
    """The verdict for people."""
    word = "booted" if result.ok else "inconclusive" if not result.conclusive else "failed"
    click.echo(f"{word}: {result.kind}: {result.reason}")
    for note in result.notes:
        click.echo(f"note: {note}")
