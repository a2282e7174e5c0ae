"""A file outside the image's folder never comes out: by no construction that names it, and by no command."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.conftest import Run
from tests.formats.vmdk.handmade import descriptor
from tests.hostile.making import ALLOCATED, DATA_FILE, bundle, bundle_image, qcow2
from vdisk import formats
from vdisk.converter import convert

SIZE = 64 << 10
CANARY = b"CANARY-6fb1c2-of-the-host\n"
COMMANDS = ("info", "info --chain", "info --json", "map", "map --json", "check", "read", "convert", "convert -O qcow2",
            "compare", "convert --no-references", "measure", "compat", "commit", "rebase",
            "check --repair all", "rebase -u")  # fmt: skip


class Trap(NamedTuple):
    """An image that names a file which is none of its business."""

    image: Path
    secret: Path
    """The file that it is after."""


def canary_bytes(size: int = SIZE) -> bytes:
    return (CANARY * (size // len(CANARY) + 1))[:size]


def spellings(folder: Path, secret: Path) -> Iterator[tuple[str, str]]:
    """(what it is called, the name) for each way to name a file outside `folder`."""
    yield "absolute", str(secret)
    yield "dotdot", f"../{secret.parent.name}/{secret.name}"
    yield "dotdot_deep", f"sub/../../{secret.parent.name}/{secret.name}"
    yield "link", "link"
    yield "link_to_link", "link2"
    yield "linked_folder", f"linked/{secret.name}"
    yield "proc", f"/proc/self/root{secret}"
    yield "descriptor", "/dev/fd/{fd}"
    yield "protocol_file", f"file:{secret}"
    yield "protocol_json", f'json:{{"driver":"raw","file":{{"driver":"file","filename":"{secret}"}}}}'
    yield "protocol_fat", f"fat:{secret.parent}"
    yield "protocol_nbd", f"nbd:unix:{secret}"


SPELLINGS = [name for name, _ in spellings(Path("/x"), Path("/y/z"))]


def spell(how: str, folder: Path, secret: Path) -> str:
    """The name that leads from `folder` to `secret` in the way `how`; makes the links that it needs."""
    (folder / "sub").mkdir(exist_ok=True)
    if how.startswith("link"):
        (folder / "link").symlink_to(secret)
        (folder / "link2").symlink_to("link")
        (folder / "linked").symlink_to(secret.parent)
    return dict(spellings(folder, secret))[how]


def qcow2_backing(folder: Path, name: str) -> Path:
    path = folder / "image.qcow2"
    path.write_bytes(qcow2(size=SIZE, backing=name))
    return path


def qcow2_data_file(folder: Path, name: str) -> Path:
    path = folder / "image.qcow2"
    entries = {index: ALLOCATED | index * 4096 for index in range(16)}
    path.write_bytes(qcow2(size=SIZE, extensions=[(DATA_FILE, name.encode())], incompatible=4, l2=entries))
    return path


def qcow2_raw_data_file(folder: Path, name: str) -> Path:
    path = folder / "image.qcow2"
    entries = {index: ALLOCATED | index * 4096 for index in range(16)}
    path.write_bytes(qcow2(size=SIZE, extensions=[(DATA_FILE, name.encode())], incompatible=4, autoclear=2, l2=entries))
    return path


def qcow2_second(folder: Path, name: str) -> Path:
    """The name stands in the backing image, which is where it should be."""
    qcow2_backing(folder, name).rename(folder / "base.qcow2")
    path = folder / "top.qcow2"
    path.write_bytes(qcow2(size=SIZE, backing="base.qcow2", backing_format="qcow2"))
    return path


def vmdk_flat(folder: Path, name: str) -> Path:
    path = folder / "image.vmdk"
    path.write_text(descriptor(f'RW {SIZE // 512} FLAT "{name}" 0', create_type="monolithicFlat"))
    return path


def vmdk_vmfs(folder: Path, name: str) -> Path:
    path = folder / "image.vmdk"
    path.write_text(descriptor(f'RW {SIZE // 512} VMFS "{name}"', create_type="vmfs"))
    return path


def vmdk_device(folder: Path, name: str) -> Path:
    path = folder / "image.vmdk"
    path.write_text(descriptor(f'RW {SIZE // 512} VMFSRDM "{name}"', create_type="vmfsRawDeviceMap"))
    return path


def vmdk_sparse(folder: Path, name: str) -> Path:
    path = folder / "image.vmdk"
    path.write_text(descriptor(f'RW {SIZE // 512} SPARSE "{name}"', create_type="monolithicSparse"))
    return path


def vmdk_parent(folder: Path, name: str) -> Path:
    path = folder / "image.vmdk"
    (folder / "d.vmdk").write_bytes(b"")
    path.write_text(descriptor(f"RW {SIZE // 512} ZERO", parent=0x1234ABCD, more=f'parentFileNameHint="{name}"'))
    return path


def parallels_bundle(folder: Path, name: str) -> Path:
    escaped = name.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    bundle(folder, bundle_image(escaped), SIZE)
    return folder / "DiskDescriptor.xml"


def ovf(folder: Path, name: str) -> Path:
    path = folder / "image.ovf"
    escaped = name.replace('"', "&quot;")
    uri = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
    path.write_text(
        '<?xml version="1.0"?><Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" '
        'xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"><References>'
        f'<File ovf:id="f1" ovf:href="{escaped}"/></References><DiskSection><Info/>'
        f'<Disk ovf:diskId="d1" ovf:fileRef="f1" ovf:capacity="{SIZE}" ovf:format="{uri}"/>'
        '</DiskSection><VirtualSystem ovf:id="vm"/></Envelope>'
    )
    return path


CONSTRUCTIONS: list[Callable[[Path, str], Path]] = [
    qcow2_backing, qcow2_data_file, qcow2_raw_data_file, qcow2_second, vmdk_flat, vmdk_vmfs, vmdk_device, vmdk_sparse,
    vmdk_parent, parallels_bundle, ovf,
]  # fmt: skip


def set_trap(tmp_path: Path, content: bytes) -> tuple[Path, Path]:
    """A folder for the image, and the secret beside that folder."""
    folder, vault = tmp_path / "images", tmp_path / "vault"
    folder.mkdir()
    vault.mkdir()
    secret = vault / "secret"
    secret.write_bytes(content)
    return folder, secret


def all_commands(run: Run, image: Path, out: Path, *how: str) -> Iterator[tuple[str, int, bytes]]:
    """Run every command that reads an image; (the command, its status, all that came out of it)."""
    for command in COMMANDS:
        words = command.split()
        target = out / "target.raw"
        if words[0] == "convert":
            arguments = [*words, *([] if "-O" in words else ["-O", "raw"]), image, target]
        elif words[0] == "compare":
            arguments = [*words, image, image]
        elif words[0] == "rebase":
            arguments = [*words, "-b", "", image]
        else:
            arguments = [*words, image]
        ran = run(*arguments, *(how if "--no-references" not in words and words[0] != "compare" else ()))
        came = ran.out.encode("latin-1") + ran.err.encode()
        assert "Traceback" not in ran.err, command
        assert ran.err.count("\n") <= 1, f"{command}: more than one line: {ran.err}"
        for path in out.iterdir():
            came += path.read_bytes()
            path.unlink()
        yield command, ran.status, came


@pytest.mark.parametrize("how", SPELLINGS)
@pytest.mark.parametrize("construct", CONSTRUCTIONS, ids=lambda function: function.__name__)
def test_no_construction_lets_the_canary_out(
    construct: Callable[[Path, str], Path], how: str, run: Run, tmp_path: Path
) -> None:
    folder, secret = set_trap(tmp_path, canary_bytes())
    out = tmp_path / "out"
    out.mkdir()
    fd = os.open(secret, os.O_RDONLY)
    try:
        image = construct(folder, spell(how, folder, secret).replace("{fd}", str(fd)))
        refused = 0
        for command, status, came in all_commands(run, image, out):
            assert CANARY[:6] not in came, f"{command}: the canary is out"
            refused += status != 0
        assert refused >= 3, "read, map and convert are refused"
        assert secret.read_bytes() == canary_bytes(), "commit and repair do not write to it either"
    finally:
        os.close(fd)


@pytest.mark.parametrize("construct", [qcow2_backing, qcow2_data_file, vmdk_flat, parallels_bundle])
def test_the_traps_would_work(construct: Callable[[Path, str], Path], run: Run, tmp_path: Path) -> None:
    """Where the user allows the folder, the very same images do give the file's bytes: so the tests above can fail."""
    folder, secret = set_trap(tmp_path, canary_bytes())
    image = construct(folder, str(secret))
    ran = run("read", "--length", "512", "--allow-external", secret.parent, image)
    assert ran.out.encode("latin-1") == canary_bytes()[:512]


@pytest.mark.parametrize("kind", ["fifo", "folder", "socket", "zero", "tty"])
@pytest.mark.parametrize("construct", CONSTRUCTIONS, ids=lambda function: function.__name__)
def test_what_is_no_file_is_not_opened(
    construct: Callable[[Path, str], Path], kind: str, run: Run, tmp_path: Path
) -> None:
    folder, _ = set_trap(tmp_path, b"")
    name = {"zero": "/dev/zero", "tty": "/dev/tty"}.get(kind, "thing")
    if kind == "fifo":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.relpath(folder / name))  # a socket's path may not be long
    image = construct(folder, name)
    for command in ("convert",) if construct is ovf else ("convert", "read", "map"):
        target = [tmp_path / "target.raw"] if command == "convert" else []
        ran = run(command, image, *target, "--allow-external", "/dev")
        assert ran.status == 1, ran
        assert ran.err.count("\n") == 1


@pytest.mark.parametrize("format_name", ["vhd", "vhdx", "qcow2", "vmdk"])
def test_children_of_a_parent_elsewhere(format_name: str, run: Run, tmp_path: Path) -> None:
    """Proper children, which name a parent with the right identity by an absolute path: refused all the same."""
    folder, secret = set_trap(tmp_path, canary_bytes(1 << 20))
    parent = secret.with_suffix("." + format_name)
    convert(secret, parent, source_format="raw")
    child = folder / f"child.{format_name}"
    with formats.open_backing(child, str(parent), format_name, allow=[parent.parent]) as device:
        from vdisk.formats.image import Backing

        formats.create(child, device.size, backing=Backing(str(parent), format_name, device))
    allowed = run("read", "--length", "512", "--allow-external", parent.parent, child)
    assert CANARY in allowed.out.encode("latin-1"), allowed
    out = tmp_path / "out"
    out.mkdir()
    for command, status, came in all_commands(run, child, out):
        assert CANARY[:6] not in came, command
        assert status != 0 or command.split()[0] in ("info", "check", "rebase"), command
    with formats.open(parent) as device:
        assert device.read(0, 1 << 20) == canary_bytes(1 << 20)


def test_a_vdi_takes_its_parent_from_its_own_folder_alone(run: Run, tmp_path: Path) -> None:
    """It names its parent by a UUID. A link beside it that leads to such a file is not followed out of the folder."""
    folder, secret = set_trap(tmp_path, canary_bytes(1 << 20))
    parent = folder / "parent.vdi"
    convert(secret, parent, source_format="raw")
    child = folder / "child.vdi"
    with formats.open_backing(child, "parent.vdi", "vdi") as device:
        from vdisk.formats.image import Backing

        formats.create(child, device.size, backing=Backing("parent.vdi", "vdi", device))
    assert CANARY in run("read", "--length", "512", child).out.encode("latin-1")
    moved = secret.with_suffix(".vdi")
    parent.rename(moved)
    parent.symlink_to(moved)
    out = tmp_path / "out"
    out.mkdir()
    for command, _status, came in all_commands(run, child, out):
        assert CANARY[:6] not in came, command
