"""Encrypted images: LUKS1 in a qcow2, and qcow2's own AES of old (QEMU docs/interop/qcow2, "Data encryption").

Under LUKS a sector's initial vector is its number in the file (or data file), so the decrypted view is a storage like
any other. Under the old AES it is the guest's sector number: those images are decoded cluster by cluster, and only
read. Metadata and compressed clusters are never encrypted. The work is done by the package `cryptography` (the extra
`crypto`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

from vdisk.errors import OptionError, StorageError, Unsupported
from vdisk.formats.qcow2.header import Header
from vdisk.storage.base import Buffer, Storage

SECTOR_BYTES = 512


def need_cryptography(file: str) -> None:
    """`Unsupported` with the remedy, where the package is missing."""
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise Unsupported(file, "qcow2", "encryption without the extra 'crypto' (pip install cryptography)") from error


def secret_from(where: str) -> bytes:
    """The secret that `file:PATH` or `env:NAME` leads to; of a file's last line end nothing is kept."""
    kind, _, name = where.partition(":")
    if kind == "file" and name:
        try:
            with open(name, "rb") as file:
                return file.read(1 << 16).removesuffix(b"\n").removesuffix(b"\r")
        except OSError as error:
            raise StorageError(name, "read the secret", error) from error
    if kind == "env" and name:
        value = os.environ.get(name)
        if value is None:
            raise OptionError(f"the environment has no variable {name!r} for the secret")
        return value.encode("utf-8", "surrogateescape")
    raise OptionError("a secret is named as file:PATH or env:NAME, never given itself")


class XtsSectors:
    """aes-xts-plain64: AES-128 or AES-256 in XTS mode, the vector being the sector's number."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def crypt(self, first_sector: int, data: Buffer, *, encrypt: bool) -> bytearray:
        """Encrypt or decrypt whole sectors."""
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        out = bytearray(len(data) + 15)
        view, target = memoryview(data), memoryview(out)
        algorithm = algorithms.AES(self._key)
        for number, at in enumerate(range(0, len(view), SECTOR_BYTES), first_sector):
            cipher = Cipher(algorithm, modes.XTS(number.to_bytes(16, "little")))
            context = cipher.encryptor() if encrypt else cipher.decryptor()
            context.update_into(view[at : at + SECTOR_BYTES], target[at:])
        target.release()
        del out[len(data) :]
        return out


class CbcSectors:
    """aes-cbc with plain64 vectors: what qcow2's old encryption is, with a key of 128 bits."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def crypt(self, first_sector: int, data: Buffer, *, encrypt: bool) -> bytearray:
        """Encrypt or decrypt whole sectors."""
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        out = bytearray()
        view = memoryview(data)
        algorithm = algorithms.AES(self._key)
        for number, at in enumerate(range(0, len(view), SECTOR_BYTES), first_sector):
            cipher = Cipher(algorithm, modes.CBC(number.to_bytes(16, "little")))
            context = cipher.encryptor() if encrypt else cipher.decryptor()
            out += context.update(view[at : at + SECTOR_BYTES])
        return out


class CryptStorage(Storage):
    """A storage as it reads once decrypted; what is written is encrypted. It does not own the storage below."""

    def __init__(self, inner: Storage, sectors: XtsSectors) -> None:
        self.inner = inner
        self.name = inner.name
        self.writable = inner.writable
        self._sectors = sectors
        self._lock = threading.Lock()  # for sectors that are written in part

    @property
    def size(self) -> int:
        return self.inner.size

    def readinto(self, offset: int, buffer: memoryview) -> int:
        first = offset // SECTOR_BYTES * SECTOR_BYTES
        end = -(-(offset + len(buffer)) // SECTOR_BYTES) * SECTOR_BYTES
        raw = self.inner.read(first, end - first)
        found = self._sectors.crypt(
            first // SECTOR_BYTES, raw[: len(raw) // SECTOR_BYTES * SECTOR_BYTES], encrypt=False
        )
        part = memoryview(found)[offset - first :][: len(buffer)]
        buffer[: len(part)] = part
        return len(part)

    def write(self, offset: int, data: Buffer) -> None:
        head, tail = offset % SECTOR_BYTES, -(offset + len(data)) % SECTOR_BYTES
        if not head and not tail:
            self.inner.write(offset, self._sectors.crypt(offset // SECTOR_BYTES, data, encrypt=True))
            return
        first = offset - head
        with self._lock:
            block = bytearray(head + len(data) + tail)
            self.readinto(first, memoryview(block)[:SECTOR_BYTES])
            if len(block) > SECTOR_BYTES:
                self.readinto(first + len(block) - SECTOR_BYTES, memoryview(block)[-SECTOR_BYTES:])
            block[head : head + len(data)] = data
            self.inner.write(first, self._sectors.crypt(first // SECTOR_BYTES, block, encrypt=True))

    def segments(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        yield offset, length, True  # a hole below does not read as zeros here

    def truncate(self, size: int) -> None:
        self.inner.truncate(size)

    def flush(self) -> None:
        self.inner.flush()

    def close(self) -> None:
        """Nothing: the storage below is another's."""


class LockedStorage(Storage):
    """Stands for the decrypted view where nobody gave the secret: says so when it is read."""

    def __init__(self, inner: Storage) -> None:
        self.name = inner.name
        self.writable = inner.writable

    @property
    def size(self) -> int:
        return 0

    def readinto(self, offset: int, buffer: memoryview) -> int:
        self._refuse()
        return 0

    def write(self, offset: int, data: Buffer) -> None:
        self._refuse()

    def truncate(self, size: int) -> None:
        self._refuse()

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._refuse()

    def read(self, offset: int, length: int) -> bytes:
        self._refuse()
        return b""

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _refuse(self) -> None:
        raise OptionError(f"{self.name}: is encrypted, and was opened without its secret (--secret names it)")


class Encryption:
    """How one image's guest data is encrypted."""

    def __init__(self, file: str, sectors: XtsSectors | CbcSectors | None, description: dict[str, Any]) -> None:
        """`sectors` is None where the image is locked."""
        self._file = file
        self._sectors = sectors
        self._description = description

    def describe(self) -> dict[str, Any]:
        """`encrypt` of qemu-img's `format-specific.data`."""
        return dict(self._description)

    def view(self, storage: Storage) -> Storage:
        """The decrypted view of where the guest's clusters lie."""
        if self._sectors is None:
            return LockedStorage(storage)
        return CryptStorage(storage, self._sectors) if isinstance(self._sectors, XtsSectors) else storage

    def decrypt(self, guest_offset: int, data: bytes) -> bytes:
        """Sectors of a cluster under the old AES."""
        if self._sectors is None:
            raise OptionError(f"{self._file}: is encrypted, and was opened without its secret (--secret names it)")
        return bytes(self._sectors.crypt(guest_offset // SECTOR_BYTES, data, encrypt=False))


def open_encryption(storage: Storage, header: Header, secret: bytes | None) -> Encryption:
    """The encryption of an image, unlocked where there is a secret; a wrong one is an `OptionError`."""
    if header.crypt_method == 1:
        sectors = None
        if secret is not None:
            need_cryptography(storage.name)
            sectors = CbcSectors(secret[:16].ljust(16, b"\0"))
        return Encryption(storage.name, sectors, {"format": "aes"})
    from vdisk.formats.qcow2.luks import read_luks, unlock

    luks = read_luks(storage, header)
    if secret is None:
        return Encryption(storage.name, None, luks.describe())
    need_cryptography(storage.name)
    return Encryption(storage.name, XtsSectors(unlock(storage, luks, secret)), luks.describe())
