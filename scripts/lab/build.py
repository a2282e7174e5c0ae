#!/usr/bin/env python3
"""Builds the lab's root disk, kernel and initrd, once, and prints the folder they are in.

The lab is a Debian that runs in QEMU's own emulation of a processor with nested paging, so that inside it /dev/kvm is
a complete KVM, on a machine whose own is not or is missing. In it are Python with vdisk's dependencies, QEMU to
compare with, and the firmware and boot images that the tests name. vdisk itself is not: the repository is shared in at
each run, and what the lab does when it has started is in it too (scripts/lab/inside).
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

import debian_disk  # noqa: E402
from debian_disk import BuildError, run, say  # noqa: E402

SIZE_BYTES = 6 << 30
UUID = "6a1f9c52-6f1e-4f0b-9d0e-7b7d15c0de03"
PYTHON_VERSION = "3.11"
"""Of the Debian in the lab, which need not be that of the machine."""

PACKAGES = (
    # The generic kernel, for 9p: the cloud kernel has no such module.
    "linux-image-amd64",
    "kmod",
    "initramfs-tools",
    "zstd",
    "iproute2",
    "procps",
    "python3",
    "python3-pkg-resources",
    "qemu-system-x86",
    "qemu-utils",
    "seabios",
    "memtest86+",
    "grub-rescue-pc",
    "ipxe",
    "syslinux",
    "syslinux-common",
    "mtools",
    "fdisk",
)

INITRD_MODULES = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic")
"""All that it takes to mount the root: the standard initrd is far larger, and is unpacked in emulation."""

INIT = """\
#!/bin/sh
mountpoint -q /proc || mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
modprobe -a 9pnet_virtio 9p
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro repository /repository
exec /repository/scripts/lab/inside
"""

RECIPE_VERSION = 1


OWN_EXTRA = re.compile(r"vdisk-toolkit\[([\w,]+)\]")
"""An extra that asks for others of its own package, which no index has."""


def python_requirements() -> list[str]:
    """What vdisk and its tests need, from pyproject.toml."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted, left = [], [*project["dependencies"], *extras["test"]]
    while left:
        requirement = left.pop()
        own = OWN_EXTRA.fullmatch(requirement)
        if own:
            left += [one for name in own[1].split(",") for one in extras[name]]
        else:
            wanted.append(requirement)
    # The lab is always a PC: a marker about the machine would be judged on the wrong one.
    return sorted({requirement.split(";")[0].strip() for requirement in wanted})


def install_python_packages(target: Path) -> None:
    """Wheels for the lab's Python, whatever Python this is."""
    platforms = ["--platform=manylinux_2_28_x86_64", "--platform=manylinux2014_x86_64"]
    options = ["--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON_VERSION}", *platforms]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    run(*pip, *options, f"--target={target}", *python_requirements())


def make_initrd(root: Path) -> tuple[Path, Path]:
    """The kernel of the Debian in `root` and a small initrd for it, made there."""
    kernel = sorted((root / "boot").glob("vmlinuz-*"))[-1]
    version = kernel.name.removeprefix("vmlinuz-")
    (root / "etc/initramfs-tools/conf.d/lab").write_text("MODULES=list\nCOMPRESS=zstd\n")
    (root / "etc/initramfs-tools/modules").write_text("\n".join(INITRD_MODULES) + "\n")
    run("update-initramfs", "-u", "-k", version, root=root)
    return kernel, root / f"boot/initrd.img-{version}"


def build(target: Path, work: Path) -> None:
    """Builds the lab in the folder `target`: root.raw, vmlinuz, initrd."""
    debian_disk.need("debootstrap", "mkfs.ext4", "chroot")
    root = work / "root"
    debian_disk.bootstrap(root, PACKAGES, debian_disk.cache_folder())
    install_python_packages(root / "opt/site")
    for folder in ("exchange", "repository", "images"):
        (root / folder).mkdir()
    (root / "lab-init").write_text(INIT)
    (root / "lab-init").chmod(0o755)
    (root / "etc/apt/sources.list").write_text("")
    (root / "etc/resolv.conf").write_text("")
    (root / "etc/hosts").write_text("127.0.0.1\tlocalhost lab\n")
    kernel, initrd = make_initrd(root)
    target.mkdir()
    shutil.copyfile(kernel, target / "vmlinuz")
    shutil.copyfile(initrd, target / "initrd")
    disk = work / "root.raw"
    with disk.open("wb") as file:
        file.truncate(SIZE_BYTES)
    debian_disk.make_filesystem(disk, root, offset=0, length=SIZE_BYTES, uuid=UUID, label="lab")
    shutil.rmtree(root)
    run("cp", "--sparse=always", disk, target / "root.raw")
    disk.unlink()


def digest() -> str:
    """What identifies this recipe in the cache."""
    parts = [RECIPE_VERSION, SIZE_BYTES, PACKAGES, INITRD_MODULES, python_requirements(), INIT]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def lab(*, force: bool = False) -> Path:
    """The folder with root.raw, vmlinuz and initrd, built if need be. Raises BuildError."""
    return debian_disk.cached("lab", digest(), build, force=force)


def main() -> int:
    """The command line: prints the folder."""
    try:
        print(lab(force="--force" in sys.argv[1:]))
    except BuildError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
