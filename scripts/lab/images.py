#!/usr/bin/env python3
"""Makes the images that the lab's tests boot: the Debian disks in every format, converted by vdisk, in one folder.

    scripts/lab/images.py FOLDER [NAME...]
    scripts/lab/images.py --converter qemu-img FOLDER       to tell a fault of the converter from one of the hypervisor

Prints nothing but what it makes. A name is that of a file below; without any, all of them are made anew.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

import build  # noqa: E402
import debian_disk  # noqa: E402

# File: which disk, and the arguments of a conversion. The two raw disks are links, not copies.
IMAGES: dict[str, tuple[str, list[str]]] = {
    "debian.raw": ("generic", []),
    "debian.qcow2": ("generic", ["-O", "qcow2"]),
    "debian-compressed.qcow2": ("generic", ["-O", "qcow2", "-c"]),
    "debian.vmdk": ("generic", ["-O", "vmdk"]),
    "debian-stream.vmdk": ("generic", ["-O", "vmdk", "-o", "subformat=streamOptimized"]),
    "debian.vdi": ("generic", ["-O", "vdi"]),
    "debian.vhd": ("generic", ["-O", "vpc", "-o", "force_size=on"]),
    "debian.vhdx": ("generic", ["-O", "vhdx"]),
    "cloud.raw": ("cloud", []),
    "cloud-compressed.qcow2": ("cloud", ["-O", "qcow2", "-c"]),
    "cloud-stream.vmdk": ("cloud", ["-O", "vmdk", "-o", "subformat=streamOptimized"]),
    "cloud.vdi": ("cloud", ["-O", "vdi"]),
    # For the cells of the table of listed formats: tests/lab/test_listed_cells.py.
    "kvm.img": ("cloud", ["-O", "raw"]),
    "kvm.qcow2": ("cloud", ["--for", "kvm"]),
    "cloud.vmdk": ("cloud", ["-O", "vmdk"]),
    "vmware.vmdk": ("generic", ["--for", "vmware"]),
    "virtualbox.vdi": ("generic", ["--for", "virtualbox"]),
    "hyper-v.vhd": ("cloud", ["--for", "hyper-v"]),
    "xen.qcow2": ("cloud", ["--for", "xen"]),
    "xenserver.vhd": ("cloud", ["--for", "xenserver"]),
}
CONVERTERS = {"vdisk": [sys.executable, "-m", "vdisk", "convert"], "qemu-img": ["qemu-img", "convert"]}


def link(source: Path, target: Path) -> None:
    """The same file under a second name; a sparse copy where links don't reach."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        debian_disk.run("cp", "--sparse=always", source, target)


def make(folder: Path, name: str, converter: str) -> None:
    """Makes one image, and says what it took."""
    variant, arguments = IMAGES[name]
    source = debian_disk.debian_disk(variant)
    target = folder / name
    start = time.monotonic()
    if arguments:
        target.unlink(missing_ok=True)
        # What is made for a target only vdisk can make.
        words = CONVERTERS["vdisk" if "--for" in arguments else converter]
        command = [*words, "-f", "raw", *arguments, str(source), str(target)]
        subprocess.run(command, check=True, cwd=REPOSITORY, stdin=subprocess.DEVNULL)
    else:
        link(source, target)
    print(f"{name}: {target.stat().st_blocks * 512 / 1e6:.0f} MB, {time.monotonic() - start:.1f} s", flush=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--converter", choices=sorted(CONVERTERS), default="vdisk")
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(IMAGES))
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(IMAGES):
        parser.error(f"no such image: {', '.join(sorted(unknown))}")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(arguments.folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # waits for labs that read the images
        for name in arguments.names or IMAGES:
            make(arguments.folder, name, arguments.converter)
        for name in ("vmlinuz", "initrd"):
            shutil.copyfile(build.lab() / name, arguments.folder / name)
    except (debian_disk.BuildError, subprocess.CalledProcessError) as error:
        print(f"lab images: {error}", file=sys.stderr)
        return 1
    finally:
        os.close(lock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
