"""LUKS1 inside a qcow2: the header in clusters of its own, unlocking it, and making one.

Follows the LUKS on-disk format specification 1.2.3: a password makes a key that decrypts a slot's key material, which
is merged to the master key, whose digest tells whether the password was right. Ciphers other than aes-xts-plain64 are
refused by name.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import uuid
from typing import Any

from vdisk.errors import Corrupt, OptionError, Unsupported
from vdisk.formats.parse import parse
from vdisk.formats.qcow2 import structs
from vdisk.formats.qcow2.encryption import SECTOR_BYTES, XtsSectors
from vdisk.formats.qcow2.header import EXTENSION_LUKS, Header
from vdisk.storage.base import Storage

_MAGIC = b"LUKS\xba\xbe"
_ACTIVE, _FREE = 0x00AC71F3, 0x0000DEAD
_HASHES = ("sha1", "sha256", "sha512")
_STRIPES = 4000
_SLOTS = 8
_HEADER_BYTES = 4096
_MOST_ITERATIONS = 100_000_000
"""More would take minutes: a file that asks for them means harm."""
_MOST_HEADER_BYTES = 64 << 20
DEFAULT_ITERATIONS = 600_000


class Luks:
    """A parsed header and where it lies."""

    def __init__(self, offset: int, length: int, fields: Any) -> None:
        self.offset, self.length = offset, length
        self.fields = fields
        self.cipher, self.mode, self.hash, self.uuid = (
            text.split(b"\0")[0].decode("ascii", "replace")
            for text in (fields.cipher, fields.mode, fields.hash, fields.uuid)
        )

    def describe(self) -> dict[str, Any]:
        """As qemu-img has it."""
        fields = self.fields
        mode, _, vectors = self.mode.partition("-")
        bits = fields.key_bytes * 8 // (2 if mode == "xts" else 1)
        slots: list[dict[str, Any]] = []
        for slot in fields.slots:
            shown: dict[str, Any] = {"active": slot.state == _ACTIVE, "key-offset": slot.material_sector * SECTOR_BYTES}
            if slot.state == _ACTIVE:
                shown |= {"iters": slot.iterations, "stripes": slot.stripes}
            slots.append(shown)
        return {
            "format": "luks",
            "ivgen-alg": vectors.partition(":")[0],
            "hash-alg": self.hash,
            "cipher-alg": f"{self.cipher}-{bits}",
            "cipher-mode": mode,
            "uuid": self.uuid,
            "slots": slots,
            "payload-offset": fields.payload_sector * SECTOR_BYTES,
            "master-key-iters": fields.digest_iterations,
        }


def luks_place(file: str, header: Header) -> tuple[int, int]:
    """(offset, bytes) of the LUKS header in the image's file."""
    data = header.extension(EXTENSION_LUKS)
    if data is None:
        raise Corrupt(file, "LUKS header", "the image does not say where it is")
    place = parse(structs.LuksExtension, data, file, "LUKS header extension")
    if place.offset % header.cluster_bytes or not place.offset:
        raise Corrupt(file, "LUKS header", expected="an offset of a cluster", found=place.offset)
    if not structs.LuksHeader.sizeof() <= place.length <= _MOST_HEADER_BYTES:
        raise Corrupt(file, "LUKS header", expected=f"at most {_MOST_HEADER_BYTES} bytes", found=place.length)
    return place.offset, place.length


def read_luks(storage: Storage, header: Header) -> Luks:
    """The LUKS header of an image."""
    file = storage.name
    offset, length = luks_place(file, header)
    fields = parse(structs.LuksHeader, storage.read(offset, structs.LuksHeader.sizeof()), file, "LUKS header")
    if fields.magic != _MAGIC or fields.version != 1:
        raise Corrupt(file, "LUKS header", expected="LUKS version 1", found=f"{fields.magic!r} {fields.version}")
    luks = Luks(offset, length, fields)
    if (luks.cipher, luks.mode) != ("aes", "xts-plain64") or fields.key_bytes not in (32, 64):
        raise Unsupported(file, "qcow2", f"LUKS with {luks.cipher}-{luks.mode}, key of {fields.key_bytes} bytes")
    if luks.hash not in _HASHES:
        raise Unsupported(file, "qcow2", f"LUKS with {luks.hash}")
    return luks


def unlock(storage: Storage, luks: Luks, secret: bytes) -> bytes:
    """The master key, by the first slot that the secret opens; `OptionError` when it opens none."""
    fields, file = luks.fields, storage.name
    for number, slot in enumerate(fields.slots):
        if slot.state != _ACTIVE:
            continue
        if not 0 < slot.stripes <= 65536 or not 0 < slot.iterations <= _MOST_ITERATIONS:
            raise Corrupt(file, f"LUKS key slot {number}", expected="sane iterations and stripes",
                          found=f"{slot.iterations} and {slot.stripes}")  # fmt: skip
        length = fields.key_bytes * slot.stripes
        at = slot.material_sector * SECTOR_BYTES
        material = storage.read(luks.offset + at, -(-length // SECTOR_BYTES) * SECTOR_BYTES)
        if at + length > luks.length or len(material) < length:
            raise Corrupt(file, f"LUKS key slot {number}", expected="key material in the header", found=at)
        key = hashlib.pbkdf2_hmac(luks.hash, secret, slot.salt, slot.iterations, fields.key_bytes)
        material = material[: -(-length // SECTOR_BYTES) * SECTOR_BYTES]
        split = XtsSectors(key).crypt(
            0, material.ljust(-(-length // SECTOR_BYTES) * SECTOR_BYTES, b"\0"), encrypt=False
        )
        master = merge(bytes(split[:length]), slot.stripes, luks.hash)
        if hmac.compare_digest(_digest(master, luks), fields.digest):
            return master
    raise OptionError(f"{file}: the secret opens none of its key slots")


def _digest(master: bytes, luks: Luks) -> bytes:
    iterations = luks.fields.digest_iterations
    if not 0 < iterations <= _MOST_ITERATIONS:
        raise Corrupt("LUKS header", "digest iterations", expected=f"1 to {_MOST_ITERATIONS}", found=iterations)
    return hashlib.pbkdf2_hmac(luks.hash, master, luks.fields.digest_salt, iterations, 20)


def _diffuse(block: bytes, hash_name: str) -> bytes:
    size = hashlib.new(hash_name).digest_size
    out = b"".join(
        hashlib.new(hash_name, number.to_bytes(4, "big") + block[at : at + size]).digest()[: len(block) - at]
        for number, at in enumerate(range(0, len(block), size))
    )
    return out


def _xor(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).to_bytes(len(one), "big")


def merge(split: bytes, stripes: int, hash_name: str) -> bytes:
    """The anti-forensic merge: the key that `stripes` pieces hold together."""
    size = len(split) // stripes
    found = bytes(size)
    for number in range(stripes - 1):
        found = _diffuse(_xor(found, split[number * size : (number + 1) * size]), hash_name)
    return _xor(found, split[-size:])


def split(key: bytes, stripes: int, hash_name: str) -> bytes:
    """`merge` backwards, with random pieces."""
    pieces = [os.urandom(len(key)) for _ in range(stripes - 1)]
    found = bytes(len(key))
    for piece in pieces:
        found = _diffuse(_xor(found, piece), hash_name)
    return b"".join((*pieces, _xor(found, key)))


def make_luks(secret: bytes, *, hash_name: str = "sha256", iterations: int = DEFAULT_ITERATIONS) -> tuple[bytes, bytes]:
    """(header with key material, master key): a new LUKS1 header with one slot, aes-256-xts-plain64."""
    key_bytes = 64
    master, salt, digest_salt = os.urandom(key_bytes), os.urandom(32), os.urandom(32)
    slot_bytes = -(-key_bytes * _STRIPES // 4096) * 4096
    total = _HEADER_BYTES + _SLOTS * slot_bytes
    digest_iterations = max(1000, iterations // 8)
    fields = structs.LuksHeader.build(
        {
            "magic": _MAGIC,
            "version": 1,
            "cipher": b"aes".ljust(32, b"\0"),
            "mode": b"xts-plain64".ljust(32, b"\0"),
            "hash": hash_name.encode().ljust(32, b"\0"),
            "payload_sector": total // SECTOR_BYTES,
            "key_bytes": key_bytes,
            "digest": hashlib.pbkdf2_hmac(hash_name, master, digest_salt, digest_iterations, 20),
            "digest_salt": digest_salt,
            "digest_iterations": digest_iterations,
            "uuid": str(uuid.uuid4()).encode().ljust(40, b"\0"),
            "slots": [
                {
                    "state": _FREE if number else _ACTIVE,
                    "iterations": 0 if number else iterations,
                    "salt": bytes(32) if number else salt,
                    "material_sector": (_HEADER_BYTES + number * slot_bytes) // SECTOR_BYTES,
                    "stripes": _STRIPES,
                }
                for number in range(_SLOTS)
            ],
        }
    )
    key = hashlib.pbkdf2_hmac(hash_name, secret, salt, iterations, key_bytes)
    material = XtsSectors(key).crypt(0, split(master, _STRIPES, hash_name), encrypt=True)
    whole = bytes(fields).ljust(_HEADER_BYTES, b"\0") + bytes(material)
    return whole.ljust(total, b"\0"), master
