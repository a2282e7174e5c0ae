"""Finds a guest's root, and reads a Linux guest's files: what it mounts, which drivers it starts with, its console."""

from __future__ import annotations

import contextlib
import posixpath
import re
import shlex
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from vdisk.inspect import initramfs, windows
from vdisk.inspect.guest import AGENTS, DRIVERS, SYSTEM_HIVE, TOOLS, Guest, Kernel, Mount
from vdisk.inspect.tree import FileSystem, Tree, Unreadable

_LARGEST_CONFIG_BYTES = 1 << 20
_LARGEST_MODULE_LIST_BYTES = 8 << 20
_MOST_KERNELS = 8
_MOST_ENTRIES = 64

_INITRAMFS = re.compile(r"(?:initrd\.img-|initrd-|initramfs-)(?P<version>.+?)(?:\.img)?$")
"""Debian's, SUSE's, dracut's; Arch's (initramfs-linux.img) and Alpine's (initramfs-lts) too."""
_KERNEL = re.compile(r"(?:vmlinuz|vmlinux|Image|linux|bzImage)-(?P<version>.+)$")
_NOT_TO_START = re.compile(r"rescue|fallback|kdump|\.old|\.bak|dpkg")
_MODULE = re.compile(r"(?P<name>[^/]+)\.ko(?:\.(?:gz|xz|zst|bz2|lz4))?$")
_MACHINES = {3: "i386", 21: "ppc64le", 22: "s390x", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
"""e_machine of ELF."""
_PROGRAMS = ("/sbin/init", "/bin/sh", "/usr/bin/env")


class Mounted(NamedTuple):
    """A file system of the disk."""

    title: str
    """"partition 1 (ext4)"."""
    system: FileSystem


def survey(volumes: Sequence[Mounted], guest: Guest) -> None:
    """Find the guest's root among file systems and tell what it is in `guest`; what is unreadable goes to `problems`.

    Of several systems on one disk the first is told; the others are named as passed over.
    """
    roots = _those(volumes, guest, _is_root)
    if not roots:
        return
    root, *others = roots
    guest.root = root.title
    guest.passed_over += [f"{one.title}: another system" for one in others]
    mounts = {"/": root.system}
    is_windows = Tree(mounts).exists(windows.SYSTEM)
    guest.family = "windows" if is_windows else "linux"
    if not is_windows:
        with _told(guest, "/boot"):
            if not _kernels_in(Tree(mounts)):
                boots = _those([one for one in volumes if one not in roots], guest, _is_boot)
                if boots:
                    mounts["/boot"] = boots[0].system
    tree = Tree(mounts)
    for what, look in _WINDOWS if is_windows else _LINUX:
        with _told(guest, what):
            look(tree, guest)


@contextlib.contextmanager
def _told(guest: Guest, what: str) -> Iterator[None]:
    """What cannot be read becomes a problem of the guest."""
    try:
        yield
    except Unreadable as error:
        guest.problems.append(f"{what}: could not be read: {error}")


def _those(volumes: Sequence[Mounted], guest: Guest, test: Callable[[FileSystem], bool]) -> list[Mounted]:
    found = []
    for volume in volumes:
        with _told(guest, volume.title):
            if test(volume.system):
                found.append(volume)
    return found


def _is_root(system: FileSystem) -> bool:
    tree = Tree({"/": system})
    return any(tree.exists(path) for path in ("/etc/os-release", "/usr/lib/os-release", "/etc/fstab", windows.SYSTEM))


def _is_boot(system: FileSystem) -> bool:
    return bool(_kernels_in(Tree({"/": system, "/boot": system})))


def _kernels_in(tree: Tree) -> list[str]:
    """Versions of the kernels in /boot, the newest first."""
    found = {match["version"] for name in tree.names("/boot") if (match := _KERNEL.match(name))}
    return sorted((one for one in found if not _NOT_TO_START.search(one)), key=_by_version, reverse=True)


def _by_version(version: str) -> list[tuple[int, str]]:
    """6.10 is later than 6.9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", version[:200])]


def _look_at_release(tree: Tree, guest: Guest) -> None:
    text = tree.text("/etc/os-release") or tree.text("/usr/lib/os-release")
    values = dict(_assignments(text))
    guest.os = values.get("PRETTY_NAME") or values.get("NAME", "")
    guest.os_id = values.get("ID", "")
    guest.os_like = [guest.os_id, *values.get("ID_LIKE", "").split()] if guest.os_id else []
    if not guest.os:
        guest.os = next((line for line in tree.text("/etc/redhat-release").splitlines() if line), "")
    for path in _PROGRAMS:
        head = tree.read(path, 20) or b""
        if head[:4] == b"\x7fELF" and len(head) == 20:
            machine = struct.unpack_from(">H" if head[5] == 2 else "<H", head, 18)[0]
            guest.architecture = _MACHINES.get(machine, f"ELF machine {machine}")
            return


def _assignments(text: str) -> Iterator[tuple[str, str]]:
    """Lines KEY=value, quoted as a shell has it."""
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if not equals or key.startswith("#"):
            continue
        try:
            words = shlex.split(value)
        except ValueError:
            continue
        yield key, words[0] if words else ""


def _look_at_fstab(tree: Tree, guest: Guest) -> None:
    for line in tree.text("/etc/fstab").splitlines():
        words = line.split()
        if len(words) >= 3 and not words[0].startswith("#"):
            guest.fstab.append(Mount(words[0], words[1], words[2], words[3] if len(words) > 3 else "defaults"))


def _look_at_programs(tree: Tree, guest: Guest) -> None:
    guest.tools = [name for name, path in TOOLS.items() if tree.exists(path)]
    guest.agents = [name for name, path in AGENTS.items() if tree.exists(path)]


def _look_at_boot_entries(tree: Tree, guest: Guest) -> None:
    """GRUB's menu, the Boot Loader Specification's entries, extlinux's."""
    lines: list[list[str]] = []
    for path in ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/boot/extlinux/extlinux.conf", "/boot/extlinux.conf"):
        for line in tree.text(path, _LARGEST_CONFIG_BYTES).splitlines():
            words = line.split()
            if words and words[0].lower() in ("linux", "linux16", "linuxefi", "append"):
                lines.append(words[1:])
            elif words and words[0] == "terminal_output":
                guest.grub_terminals += words[1:]
    environment = dict(line.partition("=")[::2] for line in tree.text("/boot/grub2/grubenv", 4096).splitlines())
    entries = [name for name in tree.names("/boot/loader/entries") if name.endswith(".conf")]
    for name in sorted(entries, key=_by_version, reverse=True)[:_MOST_ENTRIES]:
        for line in tree.text(f"/boot/loader/entries/{name}").splitlines():
            if line.startswith("options"):
                lines.append(line.replace("$kernelopts", environment.get("kernelopts", "")).split()[1:])
    guest.has_boot_entries = bool(lines)
    arguments = [word for words in lines[:_MOST_ENTRIES] for word in words]
    guest.kernel_roots = _values("root=", arguments)
    guest.consoles = _values("console=", arguments)


def _values(key: str, words: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(word.removeprefix(key) for word in words if word.startswith(key)))


def _look_at_kernels(tree: Tree, guest: Guest) -> None:
    archives = {}
    for name in tree.names("/boot"):
        match = _INITRAMFS.match(name)
        if match and not _NOT_TO_START.search(name):
            archives[match["version"]] = name
    for version in _kernels_in(tree)[:_MOST_KERNELS]:
        kernel = Kernel(version)
        found: set[str] = set()
        if version in archives:
            kernel.initramfs = f"/boot/{archives[version]}"
            try:
                found |= set(_modules(initramfs.names_in(tree.chunks(kernel.initramfs, initramfs.MOST_BYTES))))
            except Unreadable as error:
                kernel.problem = str(error)
        folder = _module_folder(tree, version)
        if folder:
            found |= set(_modules(tree.text(f"{folder}/modules.builtin", _LARGEST_MODULE_LIST_BYTES).split()))
            listed = tree.text(f"{folder}/modules.dep", _LARGEST_MODULE_LIST_BYTES).splitlines()
            shipped = found | set(_modules(line.split(":")[0] for line in listed))
            kernel.shipped = sorted(shipped)
        kernel.modules = sorted(found)
        guest.kernels.append(kernel)


def _module_folder(tree: Tree, version: str) -> str:
    """Where the modules of a kernel are; Arch's and Alpine's kernels are called by their flavour, which ends it."""
    names = tree.names("/lib/modules")
    fitting = [name for name in names if name == version] or [name for name in names if name.endswith(f"-{version}")]
    if not fitting and len(names) == 1:
        fitting = names
    return f"/lib/modules/{fitting[0]}" if fitting else ""


def _modules(paths: Sequence[str] | Iterator[str]) -> Iterator[str]:
    """Names, as lsmod shows them, of those modules among paths that are `DRIVERS`."""
    for path in paths:
        match = _MODULE.match(posixpath.basename(path))
        if match and (name := match["name"].replace("-", "_")) in DRIVERS:
            yield name


_LINUX = (
    ("os-release", _look_at_release),
    ("/etc/fstab", _look_at_fstab),
    ("programs", _look_at_programs),
    ("the boot loader's entries", _look_at_boot_entries),
    ("kernels", _look_at_kernels),
)
_WINDOWS = (
    ("the registry's SOFTWARE", windows.look_at_version),
    (SYSTEM_HIVE, windows.look_at_services),
    ("hiberfil.sys", windows.look_at_hibernation),
)
