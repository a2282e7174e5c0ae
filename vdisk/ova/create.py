"""`OvaWriter`: a disk laid out as streamOptimized inside the archive that it ships in.

The descriptor and the manifest come first and are written last: their lengths are known, their contents are not. The
disk's bytes go to their final place at once.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vdisk.errors import OptionError
from vdisk.formats.image import Backing, Placement, Writer
from vdisk.formats.options import Option
from vdisk.formats.vmdk.create import VmdkWriter
from vdisk.ova import ovf, tar
from vdisk.ova.window import WindowStorage
from vdisk.storage.base import Buffer, Storage
from vdisk.storage.staging import Staging

_STEP_BYTES = 4 << 20
_DISK_OPTIONS = ("adapter_type", "hwversion", "toolsversion", "uuid", "geometry", "ddb", "compression_level")


class OvaWriter(Writer):
    """One machine with one disk. The options describe the machine; those of the disk are VMDK's."""

    FORMAT_NAME = "ova"
    CAN_COMPRESS = True
    OPTIONS = (
        Option("name", "text", "Name of the machine; without it, that of the file.", None),
        Option("cpus", "int", "Virtual processors.", 1),
        Option("memory", "size", "Memory of the machine.", 1 << 30),
        Option("os_type", "text", "VMware's name of the guest system.", "otherGuest64"),
        Option("os_id", "int", "CIM's number of the guest system (101 Linux, 102 other, of 64 bits).", 102),
        Option("firmware", "choice", "What the machine starts by.", "bios", ("bios", "efi")),
        Option("network", "text", "Network of the one adapter; empty for none.", "VM Network"),
        Option("adapter_type", "choice", "The disk's controller.", "ide", ("ide", "lsilogic", "buslogic", "pvscsi")),
        Option("hwversion", "int", "Version of the virtual hardware.", 7),
        *(option for option in VmdkWriter.OPTIONS if option.name in _DISK_OPTIONS[2:]),
    )

    def __init__(
        self,
        staging: Staging,
        size: int,
        options: Mapping[str, Any],
        *,
        compress: bool = False,
        backing: Backing | None = None,
    ) -> None:
        super().__init__(staging, size, options, compress=compress, backing=backing)
        stem = staging.target.stem
        self._machine = self._read_machine(stem)
        self._disk_name, self._descriptor_name = f"{stem}-disk1.vmdk", f"{stem}.ovf"
        self._manifest_name = f"{stem}.mf"
        self._time = int(time.time())
        for name in (self._disk_name, self._descriptor_name, self._manifest_name):
            tar.member_header(name, 0, self._time)  # refuses a name that does not fit, before any work
        most = (1 << 63) - 1
        self._descriptor_bytes = len(self._build(most, most, most))
        self._manifest_bytes = len(self._build_manifest("0" * 64, "0" * 64))
        self._manifest_at = 512 + self._descriptor_bytes + tar.padding(self._descriptor_bytes)
        disk_header_at = self._manifest_at + 512 + self._manifest_bytes + tar.padding(self._manifest_bytes)
        self._disk_at = disk_header_at + 512
        self._archive = staging.create()
        disk_options = {name: self.options[name] for name in _DISK_OPTIONS if self.options[name] is not None}
        self._disk_storage = WindowStorage(self._archive, self._disk_at, None, staging.target.name, writable=True)
        self._disk = VmdkWriter(
            _Inside(staging.target.with_name(self._disk_name), self._disk_storage),
            size,
            {**disk_options, "subformat": "streamOptimized"},
        )
        self.size = self._disk.size
        self.unit_bytes = self._disk.unit_bytes
        self.codec, self.level, self.must_encode = self._disk.codec, self._disk.level, True
        self._populated_bytes = 0

    def _read_machine(self, stem: str) -> ovf.Machine:
        options = self.options
        name = options["name"] or stem
        if not name.isprintable() or not re.fullmatch(r"[^\x00-\x1f]{1,200}", name):
            raise OptionError(f"ova: option name: {name!r} is no name for a machine")
        for option, least, most in (("cpus", 1, 1024), ("hwversion", 4, 99), ("os_id", 0, 65535)):
            if not least <= options[option] <= most:
                raise OptionError(f"ova: option {option}: expected {least} to {most}, found {options[option]}")
        if options["memory"] < 1 << 20:
            raise OptionError(f"ova: option memory: expected 1M at least, found {options['memory']}")
        return ovf.Machine(
            name,
            options["cpus"],
            options["memory"] >> 20,
            str(options["hwversion"]),
            options["adapter_type"],
            options["os_id"],
            options["os_type"],
            options["firmware"],
            options["network"],
        )

    def _build(self, file_bytes: int, disk_bytes: int, populated_bytes: int) -> bytes:
        return ovf.build(self._machine, self._disk_name, file_bytes, disk_bytes, populated_bytes).encode()

    def _build_manifest(self, descriptor: str, disk: str) -> bytes:
        lines = (f"SHA256({self._descriptor_name})= {descriptor}", f"SHA256({self._disk_name})= {disk}")
        return "".join(f"{line}\n" for line in lines).encode()

    def place(self, offset: int, length: int) -> Iterable[Placement]:
        return self._disk.place(offset, length)

    def place_encoded(self, offset: int, payload: Buffer) -> tuple[Storage, int, Buffer]:
        self._populated_bytes += min(self.unit_bytes, self.size - offset)
        return self._disk.place_encoded(offset, payload)

    def finish(self) -> None:
        self._disk.finish()
        disk_bytes = self._disk_storage.size
        descriptor = self._build(disk_bytes, self.size, self._populated_bytes)
        descriptor = descriptor.rstrip(b"\n").ljust(self._descriptor_bytes - 1) + b"\n"
        manifest = self._build_manifest(hashlib.sha256(descriptor).hexdigest(), self._digest(disk_bytes))
        head = bytearray()
        for name, content in ((self._descriptor_name, descriptor), (self._manifest_name, manifest)):
            head += tar.member_header(name, len(content), self._time) + content + bytes(tar.padding(len(content)))
        head += tar.member_header(self._disk_name, disk_bytes, self._time)
        assert len(head) == self._disk_at
        self._archive.write(0, head)
        end = self._disk_at + disk_bytes + tar.padding(disk_bytes) + 2 * tar.BLOCK_BYTES
        self._archive.truncate(-(-end // tar.RECORD_BYTES) * tar.RECORD_BYTES)

    def _digest(self, length: int) -> str:
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(min(length, _STEP_BYTES)))
        position = 0
        while position < length:
            count = self._disk_storage.readinto(position, buffer[: length - position])
            if not count:
                break
            digest.update(buffer[:count])
            position += count
        return digest.hexdigest()


class _Inside(Staging):
    """The place of a disk's file that lies inside another file."""

    def __init__(self, target: Path, storage: Storage) -> None:
        super().__init__(target)
        self._storage = storage

    def create(self, name: str | None = None, *, device_bytes: int | None = None) -> Storage:
        assert name is None
        return self._storage
