"""Packages that are a gzip'd tar: Google Cloud's disk.raw, Vagrant's boxes.

Google Cloud: one member disk.raw, headers of the old GNU kind. Vagrant: a metadata.json that names the provider, the
disk, a Vagrantfile (Vagrant documentation, "Box file format"; vagrant-libvirt, "Create box").
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from vdisk.compat.packages import Unpacked, gz
from vdisk.errors import Corrupt, StorageError, Unsupported
from vdisk.storage.base import Storage
from vdisk.storage.staging import Staging

_GIB = 1 << 30
_STEP_BYTES = 1 << 20
_ZEROS = bytes(_STEP_BYTES)
_LARGEST_DISK_BYTES = 64 << 40
_LARGEST_TEXT_BYTES = 1 << 20
_MOST_MEMBERS = 1000
_LIBVIRT_FILE = b"""Vagrant.configure("2") do |config|
  config.vm.provider :libvirt do |libvirt|
    libvirt.driver = "kvm"
  end
end
"""
_OLD_GNU = b"ustar  \0"
_UNREADABLE: tuple[type[Exception], ...] = (OSError, *gz.BROKEN)


def detect(path: str | os.PathLike[str]) -> str:
    """ "gcp-tar", "vagrant-libvirt", "vagrant-virtualbox", or "" for what is none of them."""
    try:
        with Path(path).open("rb") as file:
            if file.read(2) != b"\x1f\x8b":
                return ""
        with _open(path) as archive:
            for number, member in enumerate(archive):
                name = member.name.removeprefix("./")
                if name == "disk.raw":
                    return "gcp-tar"
                if name == "metadata.json" and member.size <= _LARGEST_TEXT_BYTES:
                    provider = _provider(archive, member)
                    return f"vagrant-{provider}" if provider in ("libvirt", "virtualbox") else ""
                if name in ("box.img", "box.ovf"):
                    return "vagrant-libvirt" if name == "box.img" else "vagrant-virtualbox"
                if number > _MOST_MEMBERS:
                    return ""
    except _UNREADABLE:
        return ""
    return ""


@contextlib.contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[tarfile.TarFile]:
    with gz.reader(path) as content, tarfile.open(fileobj=content, mode="r|", bufsize=gz.BUFFER_BYTES) as archive:
        yield archive


def _provider(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    metadata = _json(cast(IO[bytes], archive.extractfile(member)).read())
    return str(metadata.get("provider"))


def _json(raw: bytes) -> dict[str, Any]:
    """An object out of JSON text; an empty one where there is none."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


# Reading -------------------------------------------------------------------------------------------------------


def unpack(path: Path, kind: str, folder: Path) -> Unpacked:
    """The disk of an archive, written to `folder` with holes for its zeros, and what is wrong with the archive."""
    texts: dict[str, bytes] = {}
    disks: list[str] = []
    problems: list[tuple[str, str]] = []
    try:
        with _open(path) as archive:
            for number, member in enumerate(archive):
                name = member.name.removeprefix("./")
                if number > _MOST_MEMBERS:
                    raise Unsupported(path, "package", f"archives of more than {_MOST_MEMBERS} members")
                content = archive.extractfile(member) if member.isfile() else None
                if content is None:
                    continue
                if name.endswith((".json", ".ovf")) or name == "Vagrantfile":
                    texts[name] = content.read(_LARGEST_TEXT_BYTES)
                elif name == "disk.raw" or (kind != "gcp-tar" and name.endswith((".img", ".vmdk"))):
                    disks.append(name)
                    if len(disks) == 1:
                        _write_sparse(content, member.size, folder / "disk", path)
    except gz.BROKEN as error:
        raise Corrupt(path, "archive", f"cannot be read: {error}") from error
    except OSError as error:
        raise StorageError(path, "read", error) from error
    if not disks:
        raise Corrupt(path, "archive", expected="a disk in it", found="none")
    if len(disks) > 1:
        problems.append((f"the archive has {len(disks)} disks", "only the first one was looked at"))
    problems += {"gcp-tar": _gcp_problems, "vagrant-libvirt": _libvirt_problems}.get(kind, _virtualbox_problems)(
        path, disks, texts, folder / "disk"
    )
    return Unpacked(folder / "disk", {"gcp-tar": "raw", "vagrant-libvirt": "qcow2"}.get(kind, "vmdk"), problems)


def _write_sparse(content: IO[bytes], size: int, target: Path, path: Path) -> None:
    if size > _LARGEST_DISK_BYTES:
        raise Unsupported(path, "package", f"disks of {size} bytes")
    with target.open("wb") as file:
        while chunk := content.read(_STEP_BYTES):
            if chunk == _ZEROS[: len(chunk)]:
                file.seek(len(chunk), os.SEEK_CUR)
            else:
                file.write(chunk)
        file.truncate(file.tell())


def _gcp_problems(path: Path, disks: list[str], texts: dict[str, bytes], disk: Path) -> Iterator[tuple[str, str]]:
    why = "Google Cloud's import reads no other"
    with gz.reader(path) as file:
        header = file.read(512)
    if header[257:265] != _OLD_GNU:
        yield "the tar's headers are not of the old GNU kind", why
    if header[:9] != b"disk.raw\0":
        yield "disk.raw is not the archive's first and only member", why
    if texts:
        yield f"the archive holds {', '.join(sorted(texts))} too", why


def _libvirt_problems(path: Path, disks: list[str], texts: dict[str, bytes], disk: Path) -> Iterator[tuple[str, str]]:
    metadata = _json(texts.get("metadata.json", b""))
    why = "vagrant-libvirt looks there for the format and the size"
    if metadata.get("provider") != "libvirt":
        yield "metadata.json does not name the provider libvirt", why
    if metadata.get("format") != "qcow2":
        yield "metadata.json does not name the format qcow2", why
    size = metadata.get("virtual_size")
    if not isinstance(size, int) or size < 1:
        yield "metadata.json has no virtual_size in GiB", why
    if disks[0] != "box.img":
        yield f"the disk is called {disks[0]}", "vagrant-libvirt looks for box.img"


def _virtualbox_problems(
    path: Path, disks: list[str], texts: dict[str, bytes], disk: Path
) -> Iterator[tuple[str, str]]:
    if _json(texts.get("metadata.json", b"")).get("provider") != "virtualbox":
        yield "metadata.json does not name the provider virtualbox", "Vagrant goes by it"
    if "box.ovf" not in texts:
        yield "there is no box.ovf", "Vagrant has VirtualBox import it"
        return
    from vdisk.ova import ovf

    envelope = ovf.parse(texts["box.ovf"], f"{path}:box.ovf")
    if disks[0] not in {file.name for file in envelope.files}:
        yield f"box.ovf does not name {disks[0]}", "VirtualBox imports what the descriptor names"


# Writing -------------------------------------------------------------------------------------------------------


def pack(kind: str, disk: Path, size_bytes: int, target: Path) -> None:
    """Write the archive of a kind around the image `disk` of a disk of `size_bytes`."""
    members: Callable[[Path, int], list[tuple[str, Path | bytes]]] = {
        "gcp-tar": _gcp_members,
        "vagrant-libvirt": _libvirt_members,
    }.get(kind, _virtualbox_members)
    with Staging(target) as staging:
        try:
            with gz.writer(_Appender(staging.create())) as packed:
                gz.write_tar(packed, [(_member(name), content) for name, content in members(disk, size_bytes)])
        except OSError as error:
            raise StorageError(target, "write", error) from error
        staging.commit()


class _Appender(io.RawIOBase):
    """A storage as a file that grows at its end."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._position = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        self._storage.write(self._position, view)
        self._position += len(view)
        return len(view)


def _member(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mode = 0o644
    return member


def _gcp_members(disk: Path, size_bytes: int) -> list[tuple[str, Path | bytes]]:
    return [("disk.raw", disk)]


def _libvirt_members(disk: Path, size_bytes: int) -> list[tuple[str, Path | bytes]]:
    metadata = {"provider": "libvirt", "format": "qcow2", "virtual_size": -(-size_bytes // _GIB)}
    return [("metadata.json", json.dumps(metadata).encode()), ("Vagrantfile", _LIBVIRT_FILE), ("box.img", disk)]


def _virtualbox_members(disk: Path, size_bytes: int) -> list[tuple[str, Path | bytes]]:
    from vdisk.ova import ovf

    machine = ovf.Machine("box", 1, 1024, "7", "ide", 101, "otherGuest64", "bios", "NAT")
    name = "box-disk001.vmdk"
    file_bytes = disk.stat().st_size
    descriptor = ovf.build(machine, name, file_bytes, size_bytes, min(size_bytes, file_bytes)).encode()
    return [
        ("metadata.json", b'{"provider": "virtualbox"}'),
        ("Vagrantfile", b'Vagrant.configure("2") do |config|\n  config.vm.base_mac = "080027000001"\nend\n'),
        ("box.ovf", descriptor),
        (name, disk),
    ]
