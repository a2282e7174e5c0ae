"""Options of a new image (`-o key=value`): declared as data by each format, checked here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vdisk.errors import OptionError

_UNITS = {"": 1, "b": 1, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtpe]?)(?:i?b)?", re.IGNORECASE)
_TRUE = {"on", "yes", "true", "1"}
_FALSE = {"off", "no", "false", "0"}


class Option(NamedTuple):
    """One option: its name as qemu-img has it where it has one."""

    name: str
    kind: str
    """'size' (bytes, suffixes allowed), 'int', 'bool', 'text', or 'choice'."""
    help: str
    default: Any = None
    choices: tuple[str, ...] = ()


def parse_size(text: str | int, what: str = "size") -> int:
    """Bytes, from a number with an optional binary suffix: 512, 64K, 10G, 1.5GiB, 1MB (as 1 MiB, like qemu-img)."""
    if isinstance(text, int):
        if text < 0:
            raise OptionError(f"{what}: expected 0 or more, found {text}")
        return text
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise OptionError(f"{what}: expected a size such as 512, 64K, 10G or 1MiB, found {text!r}")
    number, unit = match.groups()
    shift = 0 if unit.lower() in ("", "b") else _UNITS[unit.lower()]
    if "." in number:
        size = float(number) * (1 << shift)
        if not size.is_integer():
            raise OptionError(f"{what}: expected a whole number of bytes, found {text!r}")
        value = int(size)
    else:
        value = int(number) << shift
    if value >= 1 << 63:
        raise OptionError(f"{what}: expected less than 8 EiB, found {text!r}")
    return value


def parse_options(format_name: str, options: Sequence[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values of all of `options`: those `given`, checked, and the defaults. An unknown one is an `OptionError`."""
    by_name = {option.name: option for option in options}
    for name in given:
        if name not in by_name:
            known = ", ".join(by_name) or "none"
            raise OptionError(f"{format_name}: unknown option {name!r}; its options are: {known}")
    return {
        name: _value(format_name, option, given[name]) if name in given else option.default
        for name, option in by_name.items()
    }


def _value(format_name: str, option: Option, given: Any) -> Any:
    what = f"{format_name}: option {option.name}"
    if option.kind == "size":
        return parse_size(given, what)
    if option.kind == "int":
        try:
            return int(given)
        except ValueError:
            raise OptionError(f"{what}: expected a whole number, found {given!r}") from None
    if option.kind == "bool":
        word = str(given).lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        raise OptionError(f"{what}: expected on or off, found {given!r}")
    if option.kind == "choice":
        for choice in option.choices:
            if str(given).lower() == choice.lower():
                return choice
        raise OptionError(f"{what}: expected one of {', '.join(option.choices)}, found {given!r}")
    return str(given)
