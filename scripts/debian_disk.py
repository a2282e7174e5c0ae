#!/usr/bin/env python3
"""Builds the Debian disks that vdisk is tested and measured with, once, and prints where they are.

    scripts/debian_disk.py generic     debian-4G.raw: 4 GiB with about 670 MiB of data; the generic kernel
    scripts/debian_disk.py cloud       debian-cloud.raw: 2 GiB; the cloud kernel, which has no driver for AHCI

Both are whole disks as an installer leaves them: an MBR with GRUB, one ext4 partition, systemd, `login:` on tty1 and
on ttyS0 (root, password vdisk). They are made of Debian's own packages, unchanged, by debootstrap; so it needs root,
a loop device for grub-install, and these packages: debootstrap, e2fsprogs, fdisk.

The disks are kept in `VDISK_CACHE` (by default ~/.cache/vdisk) and made again when the recipe in this file changes.
Packages come from the mirror that apt is set up with on this machine, else from debootstrap's own.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

SUITE = "bookworm"
SECTOR_BYTES = 512
PARTITION_OFFSET_BYTES = 1 << 20
PASSWORD = "vdisk"

ENVIRONMENT = {
    **os.environ,
    "DEBIAN_FRONTEND": "noninteractive",
    "LC_ALL": "C",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}


class BuildError(Exception):
    """Why a disk can't be built here."""


@dataclass(frozen=True)
class Recipe:
    """What goes into a disk. A change of any field makes the cached disk out of date."""

    name: str
    size_bytes: int
    packages: tuple[str, ...]
    filesystem_uuid: str
    grub_defaults: str
    hostname: str = "debian"
    recipe_version: int = 3

    @property
    def digest(self) -> str:
        """What identifies the recipe in the cache."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


_SYSTEM = ("systemd-sysv", "udev", "dbus", "kmod", "initramfs-tools", "zstd", "grub-pc-bin", "grub2-common", "iproute2")

_GRUB = """\
GRUB_DEFAULT=0
GRUB_TIMEOUT=1
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0,115200"
GRUB_DISABLE_OS_PROBER=true
"""

RECIPES = {
    # GRUB as an installer sets it up: it looks for a graphics mode and a font, and goes on in text without.
    "generic": Recipe(
        name="debian-4G",
        size_bytes=4 << 30,
        packages=("linux-image-amd64", *_SYSTEM),
        filesystem_uuid="6a1f9c52-6f1e-4f0b-9d0e-7b7d15c0de01",
        grub_defaults=_GRUB,
    ),
    # GRUB as in Debian's cloud images: on the text screen and the serial port.
    "cloud": Recipe(
        name="debian-cloud",
        size_bytes=2 << 30,
        packages=("linux-image-cloud-amd64", *_SYSTEM),
        filesystem_uuid="6a1f9c52-6f1e-4f0b-9d0e-7b7d15c0de02",
        grub_defaults=_GRUB + 'GRUB_TERMINAL="console serial"\nGRUB_SERIAL_COMMAND="serial --speed=115200"\n',
    ),
}


def cache_folder() -> Path:
    """Where built disks are kept."""
    return Path(os.environ.get("VDISK_CACHE") or Path.home() / ".cache" / "vdisk")


def say(text: str) -> None:
    """Tells what goes on. Standard output is for the result."""
    print(f"debian-disk: {text}", file=sys.stderr, flush=True)


def run(*command: str | Path, stdin: str | None = None, root: Path | None = None) -> str:
    """Runs a command, in a chroot at `root` if given; its standard output. Raises BuildError with what it said."""
    words = [str(word) for word in command]
    if root is not None:
        words = ["chroot", str(root), *words]
    done = subprocess.run(
        words, input=stdin or "", capture_output=True, text=True, errors="replace", check=False, env=ENVIRONMENT
    )
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-3000:]
        raise BuildError(f"{' '.join(words)}\nexit code {done.returncode}\n{said}")
    return done.stdout


def apt_mirror(suite: str, folder: Path = Path("/etc/apt")) -> str | None:
    """The mirror of `suite` that apt is set up with on this machine: the first that has its main component.

    Reads both of apt's forms, the one-line `*.list` and the stanzas of `*.sources`. None on another system.
    """
    lists = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*.list"))]
    for path in filter(Path.is_file, lists):
        for line in path.read_text(errors="replace").splitlines():
            found = re.match(r"\s*deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+(.+)", line)
            if found and found[2] == suite and "main" in found[3].split():
                return str(found[1])
    for path in sorted((folder / "sources.list.d").glob("*.sources")):
        text = "\n".join(line for line in path.read_text(errors="replace").splitlines() if not line.startswith("#"))
        for stanza in re.split(r"\n\s*\n", text):
            fields = {
                key.lower(): value.split()
                for key, value in re.findall(r"^([\w-]+):((?:.*)(?:\n[ \t].*)*)", stanza, re.M)
            }
            usable = "deb" in fields.get("types", []) and fields.get("enabled", ["yes"]) != ["no"]
            if usable and suite in fields.get("suites", []) and "main" in fields.get("components", []):
                return str(fields["uris"][0])
    return None


def need(*programs: str) -> None:
    """Raises BuildError unless this is root with these programs."""
    if os.geteuid() != 0:
        raise BuildError("debootstrap and loop devices need root")
    missing = [program for program in programs if not shutil.which(program, path=ENVIRONMENT["PATH"])]
    if missing:
        raise BuildError(f"not installed: {', '.join(missing)} (`make peers` installs them)")


def bootstrap(root: Path, packages: Sequence[str], cache: Path) -> None:
    """A Debian of the minimal variant with `packages` in the folder `root`. Downloads are kept in `cache`."""
    downloads = cache / "packages"
    downloads.mkdir(parents=True, exist_ok=True)
    command: list[str | Path] = ["debootstrap", "--variant=minbase", f"--cache-dir={downloads.resolve()}"]
    command += [f"--include={','.join(packages)}", SUITE, root]
    if mirror := apt_mirror(SUITE):
        command.append(mirror)
    run(*command)
    for path in (root / "var/cache/apt/archives").glob("*.deb"):
        path.unlink()
    for path in (root / "var/lib/apt/lists").iterdir():
        if path.is_file():
            path.unlink()


def configure(root: Path, recipe: Recipe) -> None:
    """What an installer would ask: names, the root's password, where the root file system is."""
    (root / "etc/hostname").write_text(recipe.hostname + "\n")
    (root / "etc/hosts").write_text(f"127.0.0.1\tlocalhost\n127.0.1.1\t{recipe.hostname}\n")
    (root / "etc/fstab").write_text(f"UUID={recipe.filesystem_uuid}\t/\text4\terrors=remount-ro\t0\t1\n")
    (root / "etc/default/grub").write_text(recipe.grub_defaults)
    # The mirror of the machine it was built on is nobody else's business.
    (root / "etc/apt/sources.list").write_text("")
    (root / "etc/resolv.conf").write_text("")
    # Not its first boot, at which systemd would ask and settle things.
    (root / "etc/machine-id").write_text(hashlib.md5(recipe.name.encode()).hexdigest() + "\n")
    run("chpasswd", stdin=f"root:{PASSWORD}\n", root=root)


def partition(disk: Path, size_bytes: int) -> None:
    """An empty disk with an MBR and one bootable partition from 1 MiB to its end."""
    with disk.open("wb") as file:
        file.truncate(size_bytes)
    start = PARTITION_OFFSET_BYTES // SECTOR_BYTES
    run("sfdisk", "--quiet", disk, stdin=f"label: dos\nlabel-id: 0x76646b01\nstart={start}, type=83, bootable\n")


def make_filesystem(disk: Path, root: Path, *, offset: int, length: int, uuid: str, label: str = "root") -> None:
    """An ext4 with the files of `root`, at byte `offset` of `disk`."""
    features = f"offset={offset},hash_seed={uuid},lazy_itable_init=0,nodiscard"
    command: list[str | Path] = ["mkfs.ext4", "-q", "-F", "-d", root, "-U", uuid, "-L", label, "-m", "1"]
    run(*command, "-E", features, disk, f"{length >> 10}k")


@contextlib.contextmanager
def mounted(disk: Path, point: Path, uuid: str) -> Iterator[str]:
    """The first partition of `disk` mounted at `point`, ready for a chroot; the loop device's name there."""
    loop = run("losetup", "--show", "--find", disk).strip()
    done: list[Path] = []
    try:
        # losetup's own --partscan makes no node for the partition on some kernels; partx does.
        run("partx", "--add", loop)
        run("mount", "-o", "noatime,noinit_itable", f"{loop}p1", point)
        done.append(point)
        for name in ("proc", "sys"):
            run("mount", "--bind", f"/{name}", point / name)
            done.append(point / name)
        # A /dev with what GRUB's tools look for and nothing else; the link lets them name the file system by its UUID.
        device_folder = point / "dev"
        run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", device_folder)
        done.append(device_folder)
        by_uuid = device_folder / "disk/by-uuid"
        by_uuid.mkdir(parents=True)
        (by_uuid / uuid).symlink_to(f"../../{Path(loop).name}p1")
        for device in (loop, f"{loop}p1", "/dev/null", "/dev/zero", "/dev/urandom"):
            status = os.stat(device)
            os.mknod(device_folder / Path(device).name, status.st_mode, status.st_rdev)
        yield loop
    finally:
        for path in reversed(done):
            run("umount", path)
        run("partx", "--delete", loop)
        run("losetup", "--detach", loop)


def install_grub(disk: Path, work: Path, recipe: Recipe) -> None:
    """GRUB in the MBR and the gap behind it, and its menu, made by the disk's own Debian."""
    point = work / "mnt"
    point.mkdir()
    with mounted(disk, point, recipe.filesystem_uuid) as loop:
        run("grub-install", "--target=i386-pc", "--recheck", loop, root=point)
        run("update-grub", root=point)
        menu = (point / "boot/grub/grub.cfg").read_text()
        if f"root=UUID={recipe.filesystem_uuid} ro" not in menu:
            raise BuildError("update-grub did not name the root file system by its UUID")


def build(recipe: Recipe, target: Path, work: Path) -> None:
    """Builds the disk at `target`."""
    need("debootstrap", "mkfs.ext4", "sfdisk", "losetup", "mount", "chroot")
    root = work / "root"
    bootstrap(root, recipe.packages, cache_folder())
    configure(root, recipe)
    disk = work / "disk"
    partition(disk, recipe.size_bytes)
    length = recipe.size_bytes - PARTITION_OFFSET_BYTES
    make_filesystem(disk, root, offset=PARTITION_OFFSET_BYTES, length=length, uuid=recipe.filesystem_uuid)
    shutil.rmtree(root)
    install_grub(disk, work, recipe)
    # Zeros that mkfs and GRUB wrote become holes: fallocate --dig-holes leaves a tenth of them.
    run("cp", "--sparse=always", disk, target)


def cached(name: str, digest: str, make: Callable[[Path, Path], None], *, force: bool = False) -> Path:
    """The file or folder `name` of the cache, made by `make(target, work folder)` unless that of `digest` is there.

    Several processes may ask at once: one builds, the others wait. A build that fails leaves nothing behind.
    """
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / name
    about = cache / f"{name}.json"
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(OSError, ValueError):
            if not force and target.exists() and json.loads(about.read_text())["digest"] == digest:
                return target
        for left in cache.glob(f"{name}.*/"):  # by a build that was killed; nobody else builds while we have the lock
            shutil.rmtree(left, ignore_errors=True)
        say(f"building {target} (once; a few minutes)")
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"{name}.", dir=cache) as folder:
            made = Path(folder) / name
            make(made, Path(folder))
            files = [path.stat() for path in (made.iterdir() if made.is_dir() else [made])]
            size_bytes, allocated_bytes = sum(x.st_size for x in files), sum(x.st_blocks * 512 for x in files)
            seconds = round(time.monotonic() - start, 1)
            if target.is_dir():
                shutil.rmtree(target)
            made.replace(target)
        facts = {"size_bytes": size_bytes, "allocated_bytes": allocated_bytes, "build_seconds": seconds}
        about.write_text(json.dumps({"digest": digest, **facts}, indent=1) + "\n")
        say(f"{target}: {size_bytes} bytes, {allocated_bytes / 1e6:.0f} MB on disk, built in {seconds} s")
    return target


def debian_disk(variant: str, *, force: bool = False) -> Path:
    """The path of the disk of one variant ("generic", "cloud"), built if need be. Raises BuildError."""
    recipe = RECIPES[variant]
    return cached(f"{recipe.name}.raw", recipe.digest, lambda target, work: build(recipe, target, work), force=force)


def main() -> int:
    """The command line: prints the disk's path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=sorted(RECIPES))
    parser.add_argument("--force", action="store_true", help="build it even if it is there")
    arguments = parser.parse_args()
    try:
        print(debian_disk(arguments.variant, force=arguments.force))
    except BuildError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
