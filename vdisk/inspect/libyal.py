"""Calls into libyal's libraries, whose errors become `Unreadable`."""

from __future__ import annotations

import re
from typing import Any

from vdisk.inspect.tree import Unreadable

_CALLS = re.compile(r"(?:^| )(?:py|lib)\w+: ")
_ERRORS = (OSError, ValueError, TypeError, OverflowError, MemoryError, RuntimeError, SystemError)
"""libyal raises OSError, or what its Python glue does with a value that no Python object can have."""


def ask(method: Any, *arguments: object) -> Any:
    """Call into a library; what it raises becomes `Unreadable`, in words that fit on a line."""
    try:
        return method(*arguments)
    except _ERRORS as error:
        # libyal tells a whole call stack, the Python method first, then from the cause on upwards.
        said = [part.strip(" .") for part in _CALLS.split(" ".join(str(error).split())) if part]
        raise Unreadable(": ".join(said[:2])[:200] or type(error).__name__) from None
