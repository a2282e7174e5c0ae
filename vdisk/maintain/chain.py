"""`commit` and `rebase`: moving data between an overlay and the image behind it, for any formats that can."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from vdisk import formats
from vdisk.block.device import BlockDevice
from vdisk.block.extent import Kind
from vdisk.errors import OptionError
from vdisk.formats.gate import Gate
from vdisk.formats.image import Image
from vdisk.inspect.compare import bytes_of, pieces

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

_STEP_BYTES = 2 << 20
_WINDOW_BYTES = 256 << 20


def commit(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    backing_format: str | None = None,
    allow: Iterable[str | os.PathLike[str]] = (),
    progress: Progress | None = None,
) -> int:
    """Write what the overlay at `path` holds into the image behind it; returns the bytes written, zeros included.

    The base grows when the overlay's disk is longer. The overlay stays and reads the same as before; other
    overlays on the same base do not. A kill halfway leaves the overlay's view whole, for it still holds all of its
    data: commit again. Overlays of VMDK, VDI, VHD and VHDX know their base by an identity that its first write changes:
    after a kill they are refused, until `rebase` with `unsafe` tells them the new one.
    """
    allow = list(allow)
    with formats.open(path, format=format, backing_format=backing_format, allow=allow) as overlay:
        behind = overlay.backing
        if not isinstance(behind, Image):
            raise OptionError(f"{os.fspath(path)}: has no backing file to commit to")
        said = overlay.describe()
        base_name, base_format = behind.name, behind.format_name
    written = 0
    # Both are held to the end, so that neither changes under this; the base is let go before the overlay looks at it.
    with formats.open(path, format=format, backing=False, writable=True) as overlay:
        with formats.open(base_name, format=base_format, allow=allow, writable=True) as base:
            if base.size < overlay.size:
                base.resize(overlay.size)
            for extent in overlay.map():
                if extent.is_present:
                    if extent.kind is Kind.ZERO:
                        base.write_zeroes(extent.start, extent.length)
                    else:
                        _copy(overlay, base, extent.start, extent.end)
                    written += extent.length
                if progress is not None:
                    progress(extent.end, overlay.size)
            base.flush()
        # A base that was written has a new identity in some formats (VMDK's CID, VDI's modification UUID): follow it.
        overlay.set_backing(said.backing_name or base_name, base_format)
    return written


def rebase(
    path: str | os.PathLike[str],
    backing: str | None,
    new_format: str | None,
    *,
    format: str | None = None,
    backing_format: str | None = None,
    unsafe: bool = False,
    allow: Iterable[str | os.PathLike[str]] = (),
    progress: Progress | None = None,
) -> int:
    """Put another image (None: none) behind the overlay at `path`; returns the bytes copied into the overlay.

    The disk reads the same afterwards: what differs between the old and the new backing image is copied up first,
    so a kill halfway leaves the old chain whole. `unsafe` only changes the name, for a backing file that was moved.
    """
    allow = list(allow)
    if backing is not None and new_format is None:
        raise OptionError("the format of a backing file is not guessed: name it")
    copied = 0
    if not unsafe:
        gate = Gate(Path(path), allow=allow)
        with formats.open(path, format=format, backing_format=backing_format, allow=allow, writable=True) as overlay:
            if backing is None:
                copied = _copy_up(overlay, None, progress)
            else:
                assert new_format is not None
                with formats.open_behind(gate, "backing file", backing, new_format) as new:
                    copied = _copy_up(overlay, new, progress)
    with formats.open(path, format=format, backing=False, allow=allow, writable=True) as overlay:
        overlay.set_backing(backing, None if new_format is None else formats.find_format(new_format).name)
    return copied


def _copy_up(overlay: Image, new: BlockDevice | None, progress: Progress | None) -> int:
    """Write into `overlay` what shows through from its backing image and would change with `new` behind it."""
    copied = 0
    for window in range(0, overlay.size, _WINDOW_BYTES):
        window_end = min(window + _WINDOW_BYTES, overlay.size)
        # The window's map is taken before anything in it is written.
        through = [
            extent for extent in overlay.map(window, window_end - window) if extent.depth or not extent.is_present
        ]
        for extent in through:
            is_zero = extent.kind is Kind.ZERO
            if new is None:
                if not is_zero:
                    _copy(overlay, overlay, extent.start, extent.end)
                    copied += extent.length
                continue
            for start, length, old_is_zero, new_is_zero in pieces(overlay, new, extent.end, extent.start):
                if old_is_zero and new_is_zero:
                    continue
                old = bytes_of(overlay, start, length, old_is_zero)
                copied += _write_differences(overlay, start, old, bytes_of(new, start, length, new_is_zero))
        if progress is not None:
            progress(window_end, overlay.size)
    overlay.flush()
    return copied


def _write_differences(overlay: Image, start: int, old: memoryview, new: memoryview) -> int:
    """Write the blocks of `old` that differ from `new`."""
    copied = 0
    step = max(overlay.block_size, 512)
    at = 0
    while at < len(old):
        end = min(at + step - (start + at) % step, len(old))
        if old[at:end] != new[at:end]:
            if any(old[at:end]):
                overlay.write(start + at, old[at:end])
            else:
                _hold_zeros(overlay, start + at, end - at)
            copied += end - at
        at = end
    return copied


def _hold_zeros(overlay: Image, start: int, length: int) -> None:
    """Make the overlay itself hold zeros: a mark where its format has one, bytes where zeros only show through."""
    overlay.write_zeroes(start, length, unmap=False)
    for extent in list(overlay.map(start, length)):
        if extent.depth or not extent.is_present:
            overlay.write(extent.start, bytes(extent.length))


def _copy(source: BlockDevice, target: BlockDevice, start: int, end: int) -> None:
    buffer = memoryview(bytearray(min(_STEP_BYTES, end - start)))
    while start < end:
        part = buffer[: min(len(buffer), end - start)]
        source.readinto(start, part)
        target.write(start, part)
        start += len(part)
