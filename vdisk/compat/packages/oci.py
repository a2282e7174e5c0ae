"""An OCI image with one disk in /disk/, as KubeVirt's containerDisk has it: an image layout in a folder.

OCI image specification 1.1: image-layout, index, manifest, config, layer. KubeVirt runs the virtual machine as user 107
(qemu), who must be able to read the disk.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from pathlib import Path
from typing import IO, Any, cast

from vdisk.compat.packages import Unpacked, gz
from vdisk.errors import Corrupt, StorageError, Unsupported

OWNER = 107
"""User and group qemu in KubeVirt's containers."""
_LARGEST_JSON_BYTES = 4 << 20
_STEP_BYTES = 1 << 20
_MOST_MEMBERS = 100_000
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def is_layout(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is an OCI image layout."""
    return Path(path, "oci-layout").is_file() and Path(path, "index.json").is_file()


# Reading -------------------------------------------------------------------------------------------------------


def unpack(path: Path, folder: Path) -> Unpacked:
    """The disk of the layout at `path`, written to `folder`. Every digest on the way to it is verified."""
    try:
        index = _parse((path / "index.json").read_bytes()[:_LARGEST_JSON_BYTES], path, "index.json")
        entries = _list(index, "manifests", path)
        manifest = _parse(_blob(path, entries[0]).read_bytes()[:_LARGEST_JSON_BYTES], path, "manifest")
        found: list[tuple[str, tarfile.TarInfo]] = []
        for layer in _list(manifest, "layers", path):
            blob = _blob(path, layer)
            with tarfile.open(blob, "r|*", bufsize=gz.BUFFER_BYTES) as archive:
                for number, member in enumerate(archive):
                    if number > _MOST_MEMBERS:
                        raise Unsupported(path, "package", f"layers of more than {_MOST_MEMBERS} members")
                    name = member.name.removeprefix("./").lstrip("/")
                    if name.startswith("disk/") and member.isfile():
                        found.append((name, member))
                        if len(found) == 1:
                            content = cast(IO[bytes], archive.extractfile(member))
                            with (folder / "disk").open("wb") as file:
                                shutil.copyfileobj(content, file, _STEP_BYTES)
    except gz.BROKEN as error:
        raise Corrupt(path, "layer", f"cannot be read: {error}") from error
    except OSError as error:
        raise StorageError(path, "read", error) from error
    if not found:
        raise Corrupt(path, "layers", expected="a disk in /disk/", found="none")
    return Unpacked(folder / "disk", "", _problems(found))


def _problems(found: list[tuple[str, tarfile.TarInfo]]) -> list[tuple[str, str]]:
    problems = []
    if len(found) > 1:
        problems.append((f"/disk/ holds {len(found)} files", "KubeVirt takes one"))
    name, member = found[0]
    readable = (member.uid == OWNER and member.mode & 0o400) or (member.gid == OWNER and member.mode & 0o040)
    if not readable and not member.mode & 0o004:
        problems.append(
            (f"/{name} belongs to {member.uid}:{member.gid}, mode {member.mode:o}", f"user {OWNER} reads it")
        )
    return problems


def _parse(raw: bytes, path: Path, what: str) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Corrupt(path, what, f"is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise Corrupt(path, what, expected="an object", found=type(value).__name__)
    return value


def _list(value: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    entries = value.get(key)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise Corrupt(path, key, expected="a list of descriptors", found=entries)
    return entries


def _blob(path: Path, descriptor: dict[str, Any]) -> Path:
    """The file of a descriptor, its digest verified."""
    match = _DIGEST.fullmatch(str(descriptor.get("digest")))
    if match is None:
        raise Corrupt(path, "digest", expected="sha256 and 64 digits", found=descriptor.get("digest"))
    blob = path / "blobs" / "sha256" / match[1]
    with blob.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != match[1]:
        raise Corrupt(path, f"blob {match[1][:12]}", expected=match[1], found=digest)
    return blob


# Writing -------------------------------------------------------------------------------------------------------


class _Tee(io.RawIOBase):
    """Passes what is written on, and counts and digests it."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self.digest = hashlib.sha256()
        self.length = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._target.write(data)
        self.digest.update(data)
        self.length += len(data)
        return len(data)


def pack(disk: Path, target: Path) -> None:
    """Write the layout of an image with `disk` in it as the folder `target`, which may not be there yet."""
    if target.exists():
        raise StorageError(target, "create", "exists, and a folder does not replace it")
    folder = target.with_name(f".{target.name}.{os.urandom(4).hex()}.part")
    try:
        try:
            _write(disk, folder)
            os.rename(folder, target)
        except OSError as error:
            raise StorageError(target, "write", error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(disk: Path, folder: Path) -> None:
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layer_path = blobs / "layer"
    with layer_path.open("wb") as raw:
        packed = _Tee(raw)
        with gz.writer(packed) as zipped:
            plain = _Tee(zipped)
            _write_layer(disk, cast(IO[bytes], plain))
    layer_path.rename(blobs / packed.digest.hexdigest())
    layer = {
        "mediaType": f"{_LAYER}+gzip",
        "digest": f"sha256:{packed.digest.hexdigest()}",
        "size": packed.length,
    }
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{plain.digest.hexdigest()}"]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _store(blobs, _CONFIG, config),
        "layers": [layer],
    }
    reference = {**_store(blobs, _MANIFEST, manifest), "annotations": {"org.opencontainers.image.ref.name": "latest"}}
    index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [reference]}
    (folder / "index.json").write_bytes(_dump(index))
    (folder / "oci-layout").write_bytes(_dump({"imageLayoutVersion": "1.0.0"}))


def _write_layer(disk: Path, file: IO[bytes]) -> None:
    folder, member = tarfile.TarInfo("disk"), tarfile.TarInfo("disk/disk.qcow2")
    folder.type, folder.mode, member.mode = tarfile.DIRTYPE, 0o555, 0o440
    for entry in (folder, member):
        entry.uid = entry.gid = OWNER
    gz.write_tar(file, [(folder, None), (member, disk)])


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _store(blobs: Path, media_type: str, value: dict[str, Any]) -> dict[str, Any]:
    """Write a JSON blob; its descriptor."""
    raw = _dump(value)
    digest = hashlib.sha256(raw).hexdigest()
    (blobs / digest).write_bytes(raw)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(raw)}
