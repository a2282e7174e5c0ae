"""From bytes of a file to fields: the one place where `construct` meets a stranger's data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vdisk.errors import Corrupt

if TYPE_CHECKING:
    import construct


def parse(declaration: construct.Construct[Any, Any], data: bytes, file: str, field: str) -> Any:
    """`data` as the `construct.Container` that `declaration` describes.

    Too short or malformed data is `Corrupt`, naming `file` and `field` (what is being parsed: "header", "footer").
    """
    from construct import ConstructError

    try:
        return declaration.parse(data)
    except (ConstructError, ValueError, OverflowError, UnicodeError) as error:
        size = declaration.sizeof() if _is_fixed(declaration) else None
        if size is not None and len(data) < size:
            raise Corrupt(file, field, expected=f"{size} bytes", found=f"{len(data)} bytes") from error
        raise Corrupt(file, field, f"cannot be read: {str(error).splitlines()[-1]}") from error


def _is_fixed(declaration: construct.Construct[Any, Any]) -> bool:
    from construct import ConstructError

    try:
        declaration.sizeof()
    except (ConstructError, KeyError):
        return False
    return True
