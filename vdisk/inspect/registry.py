"""Windows' registry: the keys and values of a hive, read by libregf (the extra `inspect`).

Like `vdisk.inspect.readers`, imported by the process alone that `vdisk.inspect.guest_process` is.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import pyregf

from vdisk.inspect.libyal import ask
from vdisk.inspect.tree import Unreadable

_MOST_KEYS = 4096


class Hive:
    """A file of the registry. Paths have backslashes, and their case does not matter."""

    def __init__(self, file: io.RawIOBase) -> None:
        """Raises `Unreadable` for what is no hive."""
        head = file.read(12) or b""
        if len(head) < 12 or head[:4] != b"regf":
            raise Unreadable("it is no registry hive")
        first, second = struct.unpack_from("<II", head, 4)
        self.is_unwritten = first != second
        """Whether changes to it are in its log alone: it was in use when the disk was copied, or power was lost."""
        file.seek(0)
        self._file = file  # the library keeps no reference
        self._hive = pyregf.file()
        ask(self._hive.open_file_object, file)
        self._root = ask(self._hive.get_root_key)
        if self._root is None:
            raise Unreadable("the hive has no keys")

    def names(self, path: str) -> list[str]:
        """The keys below a key; none where there is no such key."""
        key = self._key(path)
        if key is None:
            return []
        count = min(ask(key.get_number_of_sub_keys), _MOST_KEYS)
        return [name for number in range(count) if (name := ask(ask(key.get_sub_key, number).get_name))]

    def number(self, path: str, name: str) -> int | None:
        """A value that is a number; None where there is none."""
        value = self._value(path, name)
        try:
            return None if value is None else int(ask(value.get_data_as_integer))
        except (Unreadable, TypeError):
            return None

    def text(self, path: str, name: str) -> str:
        """A value that is a text; "" where there is none."""
        value = self._value(path, name)
        try:
            return "" if value is None else str(ask(value.get_data_as_string) or "")
        except Unreadable:
            return ""

    def _key(self, path: str) -> Any:
        return ask(self._root.get_sub_key_by_path, path)

    def _value(self, path: str, name: str) -> Any:
        key = self._key(path)
        return None if key is None else ask(key.get_value_by_name, name)
