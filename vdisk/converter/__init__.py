"""Converting: a plan of steps with known totals, and the engine that carries it out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vdisk import formats
from vdisk.block.filters import Prolonged
from vdisk.converter.plan import Action, Plan, make_plan
from vdisk.errors import OptionError
from vdisk.formats.image import Backing, Image, Writer
from vdisk.storage.kept import discard_kept
from vdisk.storage.staging import Staging

if TYPE_CHECKING:
    from vdisk.block.device import BlockDevice
    from vdisk.converter.engine import Progress
    from vdisk.storage.stream import InputPipe, OutputPipe


class Conversion(NamedTuple):
    """What a conversion did, or with `dry_run` would do. All in bytes of the disk."""

    source_format: str
    source_format_guessed_from: str | None
    """From what it was guessed, in words; None where it was named."""
    target_format: str
    size_bytes: int
    read_bytes: int
    passed_bytes: int
    """Compressed units passed on without compressing them anew."""
    skipped_bytes: int
    written_bytes: int
    """What the target holds; 0 with `dry_run`."""
    resumed_bytes: int = 0
    """Of those read and passed on: what an earlier, interrupted run had done."""


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | OutputPipe,
    *,
    source_format: str | None = None,
    target_format: str | None = None,
    options: Mapping[str, Any] | None = None,
    compress: bool = False,
    backing: str | None = None,
    backing_format: str | None = None,
    source_backing_format: str | None = None,
    snapshot: str | None = None,
    disk: int | str | None = None,
    secret: bytes | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    allow: Iterable[str | os.PathLike[str]] = (),
    references: bool = True,
    dry_run: bool = False,
    flush: bool | None = None,
    size_multiple: int = 1,
    smallest_bytes: int = 0,
    resume: bool = False,
    strict: bool = False,
    force_share: bool = False,
) -> Conversion:
    """Convert the image at `source` to a new one at `target`.

    The target's format is that of its suffix, where `target_format` does not name it ("ova" makes a package);
    `options` are the format's. With `backing`, a name as the target shall have it, only what differs from that image
    is stored. `snapshot` takes an internal snapshot's disk instead of the current one; `disk` chooses one of a
    package's; `secret` unlocks an encrypted source. The target appears when it is whole: until then an image that
    stood there is as it was. `flush` waits until the disk has it; without a word on it that is done where an image is
    replaced. The disk is prolonged with zeros to `smallest_bytes` and to a multiple of `size_multiple`. `strict` and
    `force_share` say how the source is opened, as in `vdisk.formats.open`. `progress` is called with the bytes done and
    the bytes in all.

    With `resume` an interrupted conversion leaves its work in a folder beside the target, and the same call goes on
    from there (`vdisk.converter.resume`); one that has nothing to go on with begins.

    A target that is a pipe gets one file of a format that is named, and cannot take back what has gone when
    something fails; most formats read the source twice for it (`vdisk.converter.stream`).

    Raises a `VdiskError`; nothing of the target is left then, but for what `resume` keeps.
    """
    path = target if isinstance(target, (str, os.PathLike)) else "-"
    if resume and (dry_run or not isinstance(target, (str, os.PathLike))):
        raise OptionError(f"{os.fspath(path)}: {'a dry run' if dry_run else 'a pipe'} cannot be resumed")
    writer_class = target_writer(path, target_format)
    allow = list(allow)
    how = {"allow": allow, "references": references, "secret": secret, "strict": strict, "force_share": force_share}
    with contextlib.ExitStack() as stack:
        image = stack.enter_context(_open_source(source, disk, source_format, source_backing_format, how))
        device: BlockDevice = image if snapshot is None else stack.enter_context(image.open_snapshot(snapshot))
        size = max(device.size, smallest_bytes)
        size += -size % size_multiple
        if size > device.size:
            device = Prolonged(device, size)
        named = _named_backing(stack, path, backing, backing_format, allow, references, force_share)
        if not isinstance(target, (str, os.PathLike)):
            from vdisk.converter.stream import to_pipe

            plan, written = to_pipe(
                device,
                writer_class,
                target,
                options or {},
                compress=compress,
                backing=named,
                threads=threads or _default_threads(),
                progress=progress,
                dry_run=dry_run,
            )
            return _conversion(
                image.format_name, image.guessed_from, writer_class.FORMAT_NAME, device.size, plan, written
            )
        keep = [os.fspath(source), *_files_of(image)]
        if resume:
            from vdisk.converter.resume import convert_kept, fields_of

            asked = {
                "source format": image.format_name,
                "format behind the source": source_backing_format,
                "snapshot": snapshot,
                "disk of the package": None if disk is None else str(disk),
                "target": os.path.abspath(target),
                "target format": writer_class.FORMAT_NAME,
                "compression": compress,
                "backing file": backing,
                "format of the backing file": backing_format,
                "size of the disk": size,
            }
            files = [*keep, *([] if named is None else _files_of(named.device))]
            done = convert_kept(
                device,
                writer_class,
                target,
                options or {},
                fields=fields_of(source, files, writer_class, options or {}, asked),
                keep=keep,
                compress=compress,
                backing=named,
                threads=threads or _default_threads(),
                progress=progress,
                flush=flush,
            )
            made = _conversion(
                image.format_name, image.guessed_from, writer_class.FORMAT_NAME, size, done.plan, done.written_bytes
            )
            return made._replace(resumed_bytes=done.resumed_bytes)
        with Staging(target, keep=keep) as staging:
            writer = writer_class(staging, device.size, options or {}, compress=compress, backing=named)
            plan = make_plan(device, writer)
            written = 0
            if not dry_run:
                from vdisk.converter.engine import Engine

                engine = Engine(device, writer, plan, threads or _default_threads(), progress)
                engine.run()
                writer.finish()
                staging.commit(flush=flush)
                discard_kept(target)
                written = engine.written_bytes
            return _conversion(image.format_name, image.guessed_from, writer.FORMAT_NAME, device.size, plan, written)


def convert_from_pipe(
    source: InputPipe,
    target: str | os.PathLike[str] | OutputPipe,
    *,
    target_format: str | None = None,
    options: Mapping[str, Any] | None = None,
    compress: bool = False,
    backing: str | None = None,
    backing_format: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    allow: Iterable[str | os.PathLike[str]] = (),
    references: bool = True,
    flush: bool | None = None,
    force_share: bool = False,
) -> Conversion:
    """Convert the raw disk that comes out of a pipe; the arguments are those of `convert`.

    Only raw and qcow2 can be made of a pipe whose size is not known, and only raw and streamOptimized VMDK go on to
    another pipe: the rest is an `OptionError`. A pipe that ends before its size is a `StorageError`.
    """
    from vdisk.converter.stream import PipeStaging, from_pipe

    path = target if isinstance(target, (str, os.PathLike)) else "-"
    writer_class = target_writer(path, target_format)
    if source.size is None and not writer_class.CAN_LENGTHEN:
        name = writer_class.FORMAT_NAME
        raise OptionError(f"{source.name}: {name} begins with the disk's size, which a pipe does not tell: give --size")
    options = dict(options or {})
    with contextlib.ExitStack() as stack:
        named = _named_backing(stack, path, backing, backing_format, list(allow), references, force_share)
        staging: Staging
        if isinstance(target, (str, os.PathLike)):
            staging = Staging(target, keep=[] if named is None else _files_of(named.device))
        else:
            staging = PipeStaging(target, writer_class)
            options = staging.options(options)
        stack.enter_context(staging)
        writer = writer_class(staging, source.size or 0, options, compress=compress, backing=named)
        if not isinstance(target, (str, os.PathLike)) and not writer.ascends:
            name = writer.FORMAT_NAME
            raise OptionError(f"{source.name}: {name} to a pipe has to read its source twice, and a pipe is read once")
        plan, written = from_pipe(source, writer, threads or _default_threads(), progress)
        staging.commit(flush=flush)
        return _conversion("raw", None, writer.FORMAT_NAME, source.position, plan, written)


def _default_threads() -> int:
    return max(2, os.cpu_count() or 1)


def _named_backing(
    stack: contextlib.ExitStack,
    target: str | os.PathLike[str],
    name: str | None,
    format: str | None,
    allow: list[str | os.PathLike[str]],
    references: bool,
    force_share: bool,
) -> Backing | None:
    """The image behind the target, open as long as `stack`."""
    if name is None:
        return None
    if format is None:
        raise OptionError("the format of a backing file is not guessed: name it")
    behind = stack.enter_context(
        formats.open_backing(target, name, format, allow=allow, references=references, force_share=force_share)
    )
    return Backing(name, behind.format_name, behind)


def target_writer(target: str | os.PathLike[str], target_format: str | None) -> type[Writer]:
    """The `Writer` of a new image: of the format named, or of the suffix; "ova" is a package with an image in it."""
    name = target_format or Path(target).suffix[1:]
    if name.lower() == "ova":
        from vdisk.ova.create import OvaWriter

        return OvaWriter
    return formats.target_format(target, target_format).writer_class()


def _open_source(
    source: str | os.PathLike[str],
    disk: int | str | None,
    format: str | None,
    backing_format: str | None,
    how: dict[str, Any],
) -> Image:
    """The image at `source`, or a disk of the package there; `how` goes to `formats.open`."""
    if format == "ova" or (format is None and Path(source).suffix.lower() in (".ova", ".ovf")):
        from vdisk.ova import is_package, open_disk

        if format == "ova" or is_package(source):
            return open_disk(source, disk, **{name: value for name, value in how.items() if name != "secret"})
    if disk is not None:
        raise OptionError(f"{os.fspath(source)}: is one disk; only a package (OVA, OVF) has disks to choose from")
    return formats.open(source, format=format, backing_format=backing_format, **how)


def _conversion(
    source_format: str, guessed_from: str | None, target_format: str, size: int, plan: Plan, written: int
) -> Conversion:
    totals = plan.total_bytes
    return Conversion(
        source_format,
        guessed_from,
        target_format,
        size,
        totals[Action.READ],
        totals[Action.PASS],
        totals[Action.SKIP],
        written,
    )


def _files_of(image: BlockDevice) -> Iterator[str]:
    """Every file that the image and those behind it are read from."""
    layer: BlockDevice | None = image
    while layer is not None:
        yield layer.name
        if isinstance(layer, Image):
            yield from layer.describe().children
        layer = layer.backing


__all__ = ["Conversion", "convert", "convert_from_pipe"]
