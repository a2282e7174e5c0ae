"""Converting: a plan of steps with known totals, and the engine that carries it out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vdisk import formats
from vdisk.errors import OptionError
from vdisk.formats.image import Backing, Image

if TYPE_CHECKING:
    from vdisk.block.device import BlockDevice
    from vdisk.converter.engine import Progress


class Conversion(NamedTuple):
    """What a conversion did, or with `dry_run` would do. All in bytes of the disk."""

    source_format: str
    target_format: str
    size_bytes: int
    read_bytes: int
    passed_bytes: int
    """Compressed units passed on without compressing them anew."""
    skipped_bytes: int
    written_bytes: int
    """What the target holds; 0 with `dry_run`."""


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    source_format: str | None = None,
    target_format: str | None = None,
    options: Mapping[str, Any] | None = None,
    compress: bool = False,
    backing: str | None = None,
    backing_format: str | None = None,
    source_backing_format: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    allow: Iterable[str | os.PathLike[str]] = (),
    references: bool = True,
    dry_run: bool = False,
    flush: bool | None = None,
) -> Conversion:
    """Convert the image at `source` to a new one at `target`.

    The target's format is that of its suffix, where `target_format` does not name it; `options` are the format's. With
    `backing`, a name as the target shall have it, only what differs from that image is stored. The target appears when
    it is whole: until then an image that stood there is as it was. `flush` waits until the disk has it; without a word
    on it that is done where an image is replaced. `progress` is called with the bytes done and the bytes in all.

    Raises a `VdiskError`; nothing of the target is left then.
    """
    row = formats.target_format(target, target_format)
    allow = list(allow)
    with formats.open(
        source, format=source_format, allow=allow, references=references, backing_format=source_backing_format
    ) as disk:
        _refuse_own_files(disk, target)
        if backing is None:
            return _convert(disk, target, row, options or {}, compress, None, threads, progress, dry_run, flush)
        if backing_format is None:
            raise OptionError("the format of a backing file is not guessed: name it")
        with formats.open_backing(target, backing, backing_format, allow=allow, references=references) as behind:
            named = Backing(backing, behind.format_name, behind)
            return _convert(disk, target, row, options or {}, compress, named, threads, progress, dry_run, flush)


def _convert(
    disk: Image,
    target: str | os.PathLike[str],
    row: formats.Format,
    options: Mapping[str, Any],
    compress: bool,
    backing: Backing | None,
    threads: int | None,
    progress: Progress | None,
    dry_run: bool,
    flush: bool | None,
) -> Conversion:
    from vdisk.converter.plan import Action, make_plan
    from vdisk.storage.staging import Staging

    with Staging(target) as staging:
        writer = row.writer_class()(staging, disk.size, options, compress=compress, backing=backing)
        plan = make_plan(disk, writer)
        written = 0
        if not dry_run:
            from vdisk.converter.engine import Engine

            engine = Engine(disk, writer, plan, threads or max(2, os.cpu_count() or 1), progress)
            engine.run()
            writer.finish()
            staging.commit(flush=flush)
            written = engine.written_bytes
    totals = plan.total_bytes
    return Conversion(
        disk.format_name,
        row.name,
        disk.size,
        totals[Action.READ],
        totals[Action.PASS],
        totals[Action.SKIP],
        written,
    )


def _refuse_own_files(disk: Image, target: str | os.PathLike[str]) -> None:
    """A target that replaces a file which the source is read from would destroy the source."""
    where = Path(os.path.realpath(target))
    layer: BlockDevice | None = disk
    while layer is not None:
        files = {layer.name, *(layer.describe().children if isinstance(layer, Image) else ())}
        if where in {Path(os.path.realpath(file)) for file in files}:
            raise OptionError(f"{os.fspath(target)}: is a file of the source; choose another name for the target")
        layer = layer.backing


__all__ = ["Conversion", "convert"]
