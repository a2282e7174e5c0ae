"""Holds the guest inside a disk against a target. Of a Linux: drivers, names of disks, consoles, cloud-init."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from vdisk.compat import windows_rules
from vdisk.compat.catalogue import CATALOGUE
from vdisk.compat.clouds import CLOUD_AGENTS
from vdisk.compat.drivers import DRIVERS
from vdisk.compat.model import Finding, Target
from vdisk.inspect.guest import Guest, Kernel

_DEVICE = re.compile(
    r"/dev/(?:(?P<names>sd|hd|vd|xvd)[a-z]+\d*|(?P<nvme>nvme)\d+n\d+(?:p\d+)?|disk/by-(?:id|path)/[\w.:+-]+)"
)
"""Names that follow the controller, or what it calls the disk. No character of them means anything to a shell."""

_GUESTS = {
    "x86_64": {"x86-64"},
    "i386": {"x86", "x86-64"},
    "aarch64": {"Arm"},
    "arm": {"Arm"},
    "ppc64le": {"POWER"},
    "s390x": {"s390x"},
    "riscv64": {"RISC-V"},
}
"""Words of the catalogue for hosts that run a guest's architecture."""

_INSTALL = {
    "debian": "apt-get install",
    "fedora": "dnf install",
    "rhel": "dnf install",
    "suse": "zypper install",
    "arch": "pacman -S",
    "alpine": "apk add",
}
_WHOLE_KERNEL = {
    "ubuntu": "linux-image-generic",
    "debian": "linux-image-{debian}",
    "fedora": "kernel-modules kernel-modules-extra",
    "rhel": "kernel-modules kernel-modules-extra",
    "suse": "kernel-default",
    "arch": "linux",
    "alpine": "linux-lts",
}
"""Packages that have the drivers which a distribution leaves out of its kernel for clouds."""
_DEBIAN_NAMES = {"x86_64": "amd64", "aarch64": "arm64", "i386": "686-pae"}
_SERIAL = re.compile(r"tty(S|AMA|SCLP)\d|hvc\d")
_CONSOLE_ARGUMENTS = "console=tty0 console=ttyS0,115200"


def guest_findings(guest: Guest, target: Target) -> Iterator[Finding]:
    """What to know of a guest at a target."""
    for problem in guest.problems:
        yield Finding("warning", "the guest was not looked at in full", problem)
    for what in guest.passed_over:
        yield Finding("note", f"not looked into: {what}", "what stands there is not known")
    if guest.root:
        rules = windows_rules.RULES if guest.family == "windows" else _LINUX_RULES
        for rule in (_architecture, *rules):
            for finding in rule(guest, target):
                yield finding._replace(in_guest=bool(finding.fix))


def own_bus_notes(guest: Guest | None, target: Target) -> list[str]:
    """The drivers that a guest needs for buses which no machine of ours has, and whether it has them."""
    return [
        f"there the guest finds its disk by {driver.bus}, which no profile has: "
        f"it needs the driver {name}, {_whether(guest, name)}"
        for name, driver in DRIVERS.items()
        if driver.bus and name in target.controllers
    ]


def _whether(guest: Guest | None, name: str) -> str:
    if guest is not None and guest.family == "windows":
        return f"which starts with Windows{'' if windows_rules.has(guest, name) else ' not'}"
    kernel = _kernel(guest)
    if kernel is None:
        return "and whether its initramfs has it is not known"
    return f"which its initramfs {'lacks' if _lacking(kernel, name) else 'has'} (kernel {kernel.version})"


def _kernel(guest: Guest | None) -> Kernel | None:
    """The kernel that starts, the newest, where it is known what it has."""
    if guest is None or not guest.kernels:
        return None
    kernel = guest.kernels[0]
    return kernel if kernel.initramfs and not kernel.problem else None


def _lacking(kernel: Kernel, name: str) -> list[str]:
    """The modules that a driver needs and a kernel does not start with."""
    needed = [name.replace("-", "_"), *DRIVERS[name].needs]
    return [module for module in needed if module not in kernel.modules]


def _usable(guest: Guest, target: Target) -> list[str]:
    """The target's drivers that find the guest its disk when it starts; all of them where that is not known."""
    kernel = _kernel(guest)
    if kernel is None:
        return list(target.controllers)
    has = [name for name in target.controllers if not _lacking(kernel, name)]
    return [name for name in has if name != "ata_piix" or not _leaves_ide(kernel, target)]


def _leaves_ide(kernel: Kernel, target: Target) -> bool:
    """Whether a kernel leaves the emulated IDE disk to the hypervisor's own bus.

    One that was built with that bus's driver does, be the driver in the initramfs or not: ata_piix ignores the disks of
    Hyper-V (piix_ignore_devices_quirk), and Xen's are unplugged (xen_unplug_emulated_devices).
    """
    own = [name.replace("-", "_") for name in target.controllers if DRIVERS[name].bus]
    return any(name in kernel.shipped or not kernel.shipped for name in own)


def _architecture(guest: Guest, target: Target) -> Iterator[Finding]:
    runs = [word for entry in CATALOGUE if entry.target == target.name for word in entry.guests.split(", ")]
    fitting = _GUESTS.get(guest.architecture)
    if runs and fitting and not fitting & set(runs):
        why = f"{target.title} runs guests for {', '.join(dict.fromkeys(runs))} only"
        yield Finding("error", f"the system on it is for {guest.architecture}", why)


def _drivers(guest: Guest, target: Target) -> Iterator[Finding]:
    kernel = _kernel(guest)
    if not guest.kernels:
        why = "it may start from one on the EFI partition, which is not looked into: its drivers are not known"
        yield Finding("note", "no kernel was found in its /boot", why)
    if kernel is None:
        for newest in guest.kernels[:1]:
            what = f"no initramfs was found for its kernel {newest.version}"
            if newest.problem:
                what = f"the initramfs of its kernel {newest.version} could not be read: {newest.problem}"
            yield Finding("note", what, "whether it starts with a driver for the disk is not known")
        return
    usable, (default, *_) = _usable(guest, target), target.controllers
    if default in usable:
        if DRIVERS[default].bus:
            what = f"its initramfs has {default} (kernel {kernel.version})"
            yield Finding("note", what, f"there it finds its disk by {DRIVERS[default].bus}")
        return
    lacking = _lacking(kernel, default)
    modules = " and ".join(lacking)
    fix = _driver_fix(guest, kernel, lacking)
    if not usable and "ata_piix" in target.controllers and not _lacking(kernel, "ata_piix"):
        what = f"its initramfs lacks {modules} (kernel {kernel.version})"
        why = (
            f"a kernel that was built with it leaves {target.title}'s emulated IDE disk alone: "
            "it does not find its root file system"
        )
        yield Finding("error", what, why, fix)
    elif not usable:
        known = ", ".join(f"{name} ({DRIVERS[name].controller})" for name in target.controllers)
        what = f"its initramfs has no driver for the disk there: {known}"
        why = f"the kernel {kernel.version} starts at {target.title} and does not find its root file system"
        yield Finding("error", what, why, fix)
    elif DRIVERS[default].bus and "ata_piix" in usable:
        why = f"at {target.title} a kernel built without it finds the emulated IDE disk, which is slow"
        yield Finding("note", f"its initramfs lacks {modules} (kernel {kernel.version})", why, fix)
    else:
        others = " or ".join(DRIVERS[name].controller for name in usable)
        what = f"its initramfs lacks {modules}, for disks on {DRIVERS[default].controller} (kernel {kernel.version})"
        why = f"that is the usual controller at {target.title}: choose {others} there, or give the guest the driver"
        yield Finding("warning", what, why, fix)


def _driver_fix(guest: Guest, kernel: Kernel, modules: Sequence[str]) -> str:
    """Commands in the guest that bring modules into its initramfs, or that install a kernel which has them."""
    family, names = _family(guest), " ".join(modules)
    if kernel.shipped and not set(modules) <= set(kernel.shipped):
        package = _WHOLE_KERNEL.get("ubuntu" if guest.os_id == "ubuntu" else family, "")
        package = package.format(debian=_DEBIAN_NAMES.get(guest.architecture, "amd64"))
        return f"{_INSTALL[family]} {package}" if package else ""
    if "update-initramfs" in guest.tools:
        return f"printf '%s\\n' {names} >> /etc/initramfs-tools/modules && update-initramfs -u -k all"
    if "dracut" in guest.tools:
        file = "/etc/dracut.conf.d/disk-drivers.conf"
        return f"echo 'add_drivers+=\" {names} \"' > {file} && dracut --force --regenerate-all"
    if "mkinitcpio" in guest.tools:
        return f"sed -i 's/^MODULES=(/&{names} /' /etc/mkinitcpio.conf && mkinitcpio -P"
    return ""


def _family(guest: Guest) -> str:
    """Whose package manager it has."""
    return next((name for like in guest.os_like for name in _INSTALL if like.startswith(name)), "")


def _names_of(device: str) -> str | None:
    """ "sd" for /dev/sda1; "" for a link by path or by the disk's own name; None for what is the same everywhere."""
    match = _DEVICE.fullmatch(device)
    return None if match is None else match["names"] or match["nvme"] or ""


def _kernel_root(guest: Guest, target: Target) -> Iterator[Finding]:
    for device in guest.kernel_roots:
        names = _names_of(device)
        if names is None:
            continue
        shown = [DRIVERS[name].names for name in _usable(guest, target) or target.controllers]
        fix = _root_fix(guest, device)
        what = f"the boot loader gives the kernel root={device}"
        if names == shown[0]:
            yield Finding("note", what, "such a name follows the order of the disks: a second one may take it", fix)
        elif names in shown:
            why = f"at {target.title} the disk is /dev/{shown[0]}... unless another controller is chosen"
            yield Finding("warning", what, why, fix)
        else:
            why = f"at {target.title} the disk is /dev/{shown[0]}...: the kernel does not find its root file system"
            yield Finding("error", what, why, fix)


def _root_fix(guest: Guest, device: str) -> str:
    if "grubby" in guest.tools:
        return f'grubby --update-kernel=ALL --args="root=UUID=$(blkid -s UUID -o value {device})"'
    update = _grub_update(guest)
    return update and f"sed -i '/^GRUB_DISABLE_LINUX_.*UUID/d' /etc/default/grub && {update}"


def _grub_update(guest: Guest) -> str:
    """The command that writes GRUB's menu anew."""
    commands = {
        "update-grub": "update-grub",
        "grub2-mkconfig": "grub2-mkconfig -o /boot/grub2/grub.cfg",
        "grub-mkconfig": "grub-mkconfig -o /boot/grub/grub.cfg",
    }
    return next((command for name, command in commands.items() if name in guest.tools), "")


def _fstab(guest: Guest, target: Target) -> Iterator[Finding]:
    used = [mount for mount in guest.fstab if "noauto" not in mount.options.split(",")]
    named = {mount.device: names for mount in used if (names := _names_of(mount.device)) is not None}
    if not named:
        return
    devices = " ".join(named)
    # blkid runs where the names are still right: in the guest, before it moves.
    line = "s|^$d[[:space:]]|UUID=$(blkid -s UUID -o value $d) |"
    fix = f'for d in {devices}; do sed -i "{line}" /etc/fstab; done'
    what = f"/etc/fstab names {', '.join(named)}"
    shown = DRIVERS[(_usable(guest, target) or target.controllers)[0]].names
    if set(named.values()) == {shown}:
        yield Finding("note", what, "such names follow the order of the disks: a second one may take them", fix)
    else:
        why = f"at {target.title} the disk is /dev/{shown}...: the system waits for what is not there, and may stop"
        yield Finding("warning", what, why, fix)


def _consoles(guest: Guest, target: Target) -> Iterator[Finding]:
    if not guest.has_boot_entries:
        return
    serial = [one for one in guest.consoles if _SERIAL.match(one)]
    fix = _console_fix(guest)
    if target.kind == "cloud" and not serial:
        why = f"{target.title} shows the serial port: what the kernel says, and a login, are not seen there"
        yield Finding("note", "the kernel has no console on the serial port", why, fix)
    if target.kind != "cloud" and serial and serial == guest.consoles:
        why = "the screen stays empty while it starts: what it says goes to the serial port"
        yield Finding("note", f"the kernel has its console on {', '.join(serial)} only", why, fix)
    if target.kind != "cloud" and set(guest.grub_terminals) == {"serial"}:
        why = "the screen shows no menu"
        yield Finding("note", "GRUB shows its menu on the serial port only", why, _terminal_fix(guest))


def _console_fix(guest: Guest) -> str:
    if "grubby" in guest.tools:
        return f'grubby --update-kernel=ALL --args="{_CONSOLE_ARGUMENTS}"'
    update = _grub_update(guest)
    line = rf's/^GRUB_CMDLINE_LINUX="\(.*\)"/GRUB_CMDLINE_LINUX="\1 {_CONSOLE_ARGUMENTS}"/'
    return update and f"sed -i '{line}' /etc/default/grub && {update}"


def _terminal_fix(guest: Guest) -> str:
    update = _grub_update(guest)
    return update and f"echo 'GRUB_TERMINAL=\"console serial\"' >> /etc/default/grub && {update}"


def _cloud_init(guest: Guest, target: Target) -> Iterator[Finding]:
    has = "cloud-init" in guest.agents
    if target.kind == "cloud" and not has and CLOUD_AGENTS.get(target.name) not in guest.agents:
        family = _family(guest)
        why = f"keys, names and networks that are given at {target.title} do not reach the system"
        yield Finding("warning", "cloud-init is not on it", why, f"{_INSTALL[family]} cloud-init" if family else "")
    elif target.kind == "hypervisor" and has:
        why = "it waits for a source of settings; without one (a NoCloud disk) there may be no password to log in with"
        yield Finding("note", "cloud-init is on it", why)


_LINUX_RULES = (_drivers, _kernel_root, _fstab, _consoles, _cloud_init)


def guest_rows(guest: Guest | None, hint: str) -> Iterable[tuple[str, str]]:
    """(what, in words) of a guest, for people."""
    if hint:
        yield "system:", hint
    if guest is None:
        return
    if guest.root:
        name = guest.os or f"{guest.family.title()} of an unknown name"
        known = (name, guest.build and f"build {guest.build}", guest.architecture)
        yield "system:", ", ".join(word for word in known if word) + f", on {guest.root}"
        yield from windows_rules.rows(guest) if guest.family == "windows" else _linux_rows(guest)
    else:
        yield "system:", "neither Linux nor Windows was found"
    for what in guest.passed_over:
        yield "", f"not looked into: {what}"
    for problem in guest.problems:
        yield "", problem


def _linux_rows(guest: Guest) -> Iterator[tuple[str, str]]:
    for kernel in guest.kernels:
        if kernel.problem:
            said = f"its initramfs could not be read: {kernel.problem}"
        elif not kernel.initramfs:
            said = "no initramfs found"
        else:
            said = f"starts with {' '.join(kernel.modules) or 'no driver of disks'}"
        yield "kernel:", f"{kernel.version}: {said}"
    if guest.fstab:
        yield "fstab:", ", ".join(f"{mount.device} on {mount.point}" for mount in guest.fstab)
    if guest.has_boot_entries:
        grub = f"; GRUB on {' '.join(guest.grub_terminals)}" if guest.grub_terminals else ""
        yield "console:", f"{' '.join(guest.consoles) or 'the default'}{grub}"
    yield "cloud-init:", "yes" if "cloud-init" in guest.agents else "no"
