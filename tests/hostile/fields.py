"""Where the fields of a construct declaration lie, and values at the edges of each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import construct


class Field(NamedTuple):
    """An integer field: where it begins, from the start of its structure, and how it is stored."""

    name: str
    offset: int
    width: int
    byteorder: str

    def put(self, target: bytearray, base: int, value: int) -> None:
        """Write `value`, cut to the field's width, into the structure at `base`."""
        at = base + self.offset
        target[at : at + self.width] = (value % (1 << 8 * self.width)).to_bytes(self.width, self.byteorder)  # type: ignore[arg-type]

    def get(self, source: bytes | bytearray, base: int) -> int:
        """What the structure at `base` says."""
        at = base + self.offset
        return int.from_bytes(source[at : at + self.width], self.byteorder)  # type: ignore[arg-type]


def fields_of(declaration: Any, base: int = 0, prefix: str = "") -> Iterator[Field]:
    """Every integer of a declaration, nested structures and arrays walked through."""
    for part in declaration.subcons:
        size = part.sizeof()
        yield from _fields_in(part, base, prefix + (part.name or ""))
        base += size


def _fields_in(part: Any, base: int, name: str) -> Iterator[Field]:
    inner = part
    while isinstance(inner, construct.Renamed):
        inner = inner.subcon
    if isinstance(inner, construct.Const):
        inner = inner.subcon
    if isinstance(inner, construct.Struct):
        yield from fields_of(inner, base, name + ".")
    elif isinstance(inner, construct.Array):
        step = inner.subcon.sizeof()
        for number in range(inner.count):
            yield from _fields_in(inner.subcon, base + number * step, f"{name}[{number}]")
    elif isinstance(inner, construct.FormatField):
        yield Field(name, base, inner.sizeof(), "big" if inner.fmtstr[0] == ">" else "little")


def edges(width: int, now: int, file_bytes: int) -> list[int]:
    """Values at which code goes wrong: nothing, one, the ends of the type, powers of two, the file's own size."""
    most = (1 << 8 * width) - 1
    values = {0, 1, 2, 3, most, most - 1, most >> 1, (most >> 1) + 1, now - 1, now + 1, now * 2, now ^ 1}
    values |= {1 << bit for bit in range(0, 8 * width, 3)}
    values |= {file_bytes + more for more in (-512, -1, 0, 1, 512)} | {file_bytes // 512, file_bytes // 512 + 1}
    values |= {511, 512, 513, 65535, 65536, (1 << 31) - 512, (1 << 32) - 512}
    return sorted({value % (most + 1) for value in values} - {now})
