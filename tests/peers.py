"""Other people's programs, as judges of ours, and images that they wrote.

A test that calls one carries `@pytest.mark.peer`::

    @pytest.mark.peer
    def test_qemu_reads_it(tmp_path):
        qemu_check(path)
        qemu_compare(path, source)
        assert libyal_sha256("qcow2", path) == sha256

A program that isn't there skips the test, or fails it where `VDISK_REQUIRE_PEERS=1` is set, as it is on CI.
`scripts/setup-peers.sh` (`make peers`) installs them all on Debian and Ubuntu.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

import pytest

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 120.0

_PACKAGES = {
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "qcowmount": "libqcow-utils",
    "qcowinfo": "libqcow-utils",
    "vmdkmount": "libvmdk-utils",
    "vmdkinfo": "libvmdk-utils",
    "vhdimount": "libvhdi-utils",
    "vhdiinfo": "libvhdi-utils",
    "7z": "7zip",
    "nbdkit": "nbdkit",
    "nbdinfo": "libnbd-bin",
    "nbdcopy": "libnbd-bin",
    "iasl": "acpica-tools",
    "debootstrap": "debootstrap",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "losetup": "mount",
    "mkntfs": "ntfs-3g",
    "ntfs-3g": "ntfs-3g",
    "pvcreate": "lvm2",
    "vgcreate": "lvm2",
    "lvcreate": "lvm2",
    "sfdisk": "fdisk",
    "syslinux": "syslinux",
    "mformat": "mtools",
    "mcopy": "mtools",
    "grub-mkrescue": "grub-common",
    "chromium": "chromium",
}

_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where an ordinary user's PATH may not look for sfdisk and mkfs."""


def missing(what: str) -> NoReturn:
    """Skips the test for want of `what`; fails it where peers are required (`VDISK_REQUIRE_PEERS=1`)."""
    if os.environ.get("VDISK_REQUIRE_PEERS") == "1":
        pytest.fail(f"{what}, and VDISK_REQUIRE_PEERS=1 requires it")
    pytest.skip(what)


def require(program: str) -> str:
    """The path of a program, or no test."""
    path = shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":" + _SBIN)
    if path is None:
        package = _PACKAGES.get(program)
        hint = f" (Debian package {package}; `make peers`)" if package else ""
        missing(f"{program} is not installed{hint}")
    return path


def require_file(path: str | Path, package: str) -> Path:
    """A file that a Debian package puts there (a firmware, an ISO), or no test."""
    if not Path(path).is_file():
        missing(f"{path} is not there (Debian package {package}; `make peers`)")
    return Path(path)


def run(
    program: str,
    *arguments: str | Path | int,
    timeout: float = TIMEOUT_SECONDS,
    check: bool = True,
    codes: Sequence[int] = (0,),
    stdin: bytes | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Runs a peer and returns what it printed, as bytes.

    Fails the test, quoting the command and what the program said, when its exit code is none of `codes` (unless
    `check` is False) or when `timeout` seconds have passed.
    """
    command = [require(program), *map(str, arguments)]
    try:
        done = subprocess.run(
            command,
            input=stdin if stdin is not None else b"",
            capture_output=True,
            timeout=timeout,
            check=False,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as error:
        said = (error.stderr or b"") + (error.stdout or b"")
        pytest.fail(f"{' '.join(command)}\nhad not finished after {timeout} s\n{_tail(said)}")
    if check and done.returncode not in codes:
        pytest.fail(f"{' '.join(command)}\nexit code {done.returncode}\n{_tail(done.stderr + done.stdout)}")
    return done


def _tail(output: bytes) -> str:
    return output[-4000:].decode(errors="replace")


# qemu-img and qemu-io


def qemu_img(*arguments: str | Path | int, **options: Any) -> str:
    """`qemu-img ARGUMENTS`; its standard output. Options as for `run`."""
    return run("qemu-img", *arguments, **options).stdout.decode()


def qemu_img_info(path: str | Path, *, format: str | None = None) -> dict[str, Any]:
    """What `qemu-img info --output=json` says."""
    return cast(dict[str, Any], json.loads(qemu_img("info", "--output=json", *_format("-f", format), path)))


def qemu_img_map(path: str | Path, *, format: str | None = None) -> list[dict[str, Any]]:
    """What `qemu-img map --output=json` says."""
    return cast(list[dict[str, Any]], json.loads(qemu_img("map", "--output=json", *_format("-f", format), path)))


def qemu_compare(
    one: str | Path,
    other: str | Path,
    *,
    formats: tuple[str | None, str | None] = (None, None),
    same_size: bool = True,
) -> None:
    """Two disks hold the same bytes, as `qemu-img compare` reads them.

    `formats` are qemu-img's names (vpc, not vhd) of the two; None lets it guess. A disk that is longer by zeros alone
    passes only with `same_size` False.
    """
    qemu_img("compare", *_format("-f", formats[0]), *_format("-F", formats[1]), one, other, timeout=300)
    if same_size:
        sizes = [
            qemu_img_info(path, format=name)["virtual-size"] for path, name in zip((one, other), formats, strict=True)
        ]
        if sizes[0] != sizes[1]:
            pytest.fail(f"{one} is {sizes[0]} bytes long and {other} {sizes[1]}")


def qemu_check(path: str | Path, *, format: str | None = None) -> None:
    """`qemu-img check` finds nothing wrong: no error, no leak. Only for what it can check (not raw, not VHD)."""
    qemu_img("check", *_format("-f", format), path, timeout=300)


def _format(flag: str, name: str | None) -> list[str]:
    return [flag, name] if name else []


def qemu_io(path: str | Path, *commands: str, format: str | None = None, writable: bool = True) -> str:
    """`qemu-io` runs `commands` ("write -P 7 0 1M") on an image; what it printed.

    qemu-io exits 0 when a pattern does not match, so its words are looked at too.
    """
    arguments: list[str | Path] = [*_format("-f", format)]
    if not writable:
        arguments.append("-r")
    for command in commands:
        arguments += ["-c", command]
    printed = run("qemu-io", *arguments, path)
    said = (printed.stdout + printed.stderr).decode(errors="replace")
    if "Pattern verification failed" in said or " failed: " in said:
        pytest.fail(f"qemu-io {path}: {said}")
    return said


# Second and third readers


_LIBYAL = {
    "qcow2": ("qcowmount", "qcow"),
    "vmdk": ("vmdkmount", "vmdk"),
    "vhd": ("vhdimount", "vhdi"),
    "vpc": ("vhdimount", "vhdi"),
    "vhdx": ("vhdimount", "vhdi"),
}


@contextlib.contextmanager
def libyal_disk(format: str, path: str | Path) -> Iterator[Path]:
    """The guest's disk as libqcow, libvmdk or libvhdi gives it: a plain file on a FUSE mount beside the image.

    Of a chain, the last layer's file is given. `format`: qcow2, vmdk, vhd (or vpc), vhdx.
    """
    program, _ = _LIBYAL[format]
    require(program)
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        missing(f"/dev/fuse cannot be opened, which {program} needs")
    image = Path(path)
    point = image.parent / f".{image.name}.{program}"
    point.mkdir()
    try:
        run(program, image, point)  # it goes to the background when it has mounted, and ends when it is unmounted
        disks = sorted(point.iterdir())
        if not disks:
            pytest.fail(f"{program} {image}: mounted, but shows no disk")
        yield disks[-1]
    finally:
        if os.path.ismount(point):
            unmount = shutil.which("fusermount3") or shutil.which("fusermount")
            command = [unmount, "-u", "-z"] if unmount else ["umount", "-l"]
            subprocess.run([*command, str(point)], capture_output=True, check=False, timeout=20)
        with contextlib.suppress(OSError):
            point.rmdir()


def libyal_sha256(format: str, path: str | Path, *, length: int | None = None) -> str:
    """The sha256 of the guest's disk (or of its first `length` bytes) as libqcow, libvmdk or libvhdi reads it."""
    with libyal_disk(format, path) as disk:
        return sha256(disk, length=length)


def libyal_info(format: str, path: str | Path) -> str:
    """What `qcowinfo`, `vmdkinfo` or `vhdiinfo` prints."""
    return run(_LIBYAL[format][1] + "info", path).stdout.decode(errors="replace")


def sevenzip_sha256(path: str | Path, *, kind: str) -> str:
    """The sha256 of the guest's disk as 7z reads it. `kind` is 7z's name of the format: QCOW, VMDK, VDI, VHD, VHDX."""
    program = "7zz" if shutil.which("7zz") else "7z"  # Debian's package has had the one name and the other
    command = [require(program), "e", "-so", f"-t{kind}", str(path)]
    digest = hashlib.sha256()
    # A pipe, so that a disk of many gigabytes does not pass through memory or a file.
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while chunk := process.stdout.read(CHUNK_BYTES):
            digest.update(chunk)
        said = process.stderr.read()
    if process.returncode != 0:
        pytest.fail(f"{' '.join(command)}\nexit code {process.returncode}\n{_tail(said)}")
    return digest.hexdigest()


def sha256(path: str | Path, *, length: int | None = None) -> str:
    """The sha256 of a file, or of its first `length` bytes."""
    digest = hashlib.sha256()
    left = os.stat(path).st_size if length is None else length
    with open(path, "rb") as file:
        while left:
            chunk = file.read(min(CHUNK_BYTES, left))
            if not chunk:
                raise AssertionError(f"{path} is shorter than expected by {left} bytes")
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


# Images that other programs wrote


def real_images() -> Path:
    """The folder of real images, or no test: `VDISK_REAL_IMAGES`, else `../shared/real-images` from the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "real-images"
    folder = Path(os.environ.get("VDISK_REAL_IMAGES") or beside)
    if not folder.is_dir():
        # Not ours to publish, so never a failure, whatever is required: few machines have the folder.
        pytest.skip(f"the folder of real images is not there: {folder} (VDISK_REAL_IMAGES names another)")
    return folder


def real_image(name: str, folder: Path) -> Path:
    """Unpacks one real image (`windows-dynamic.vhd`, without .gz or .bz2) into `folder`; its path there.

    A bundle (`expanding.hdd`) is copied as a folder.
    """
    source = real_images() / name
    target = folder / name
    if source.is_dir():
        shutil.copytree(source, target, copy_function=shutil.copyfile)
        target.chmod(0o755)
        return target
    for suffix, module in ((".bz2", bz2), (".gz", gzip)):
        path = source.with_name(source.name + suffix)
        if path.is_file():
            with cast(BinaryIO, module.open(path, "rb")) as packed, target.open("wb") as file:
                shutil.copyfileobj(packed, file, CHUNK_BYTES)
            return target
    shutil.copyfile(source, target)
    return target
