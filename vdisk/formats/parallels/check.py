"""Checking Parallels images, and mending them."""

from __future__ import annotations

from collections.abc import Iterator

from vdisk.errors import StorageError
from vdisk.formats.check import CheckReport, Fault, Repair, Severity, mend_faults
from vdisk.formats.parallels.bundle import BundleImage, BundleLayer
from vdisk.formats.parallels.extension import read_features
from vdisk.formats.parallels.hds import HdsImage
from vdisk.formats.parallels.image import ParallelsImage

_COPY_BYTES = 1 << 20
_PAGE_BYTES = 4096


def check(image: ParallelsImage, repair: Repair, *, dry_run: bool) -> CheckReport:
    """Hold the header and the table of each of an image's files against the file.

    Only the top layer of a bundle can be mended: it alone is open for writing.
    """
    if repair is not Repair.NONE and not dry_run and not image.writable:
        raise StorageError(image.name, "repair", "opened read-only")
    report = CheckReport(total_clusters=0, allocated_clusters=0, image_end_offset=0)
    if isinstance(image, HdsImage):
        _check_file(image, report, repair, is_mended=not dry_run)
        return report
    assert isinstance(image, BundleImage)
    layer: object = image
    while isinstance(layer, BundleLayer):
        for part in layer.parts:
            if isinstance(part.image, HdsImage):
                is_mended = not dry_run and layer is image
                _check_file(part.image, report, repair, is_mended=is_mended, prefix=f"{part.image.name}: ")
        layer = layer.backing
    return report


def _check_file(image: HdsImage, report: CheckReport, repair: Repair, *, is_mended: bool, prefix: str = "") -> None:
    header = image.header
    report.total_clusters = (report.total_clusters or 0) + header.bat_entries
    report.allocated_clusters = (report.allocated_clusters or 0) + header.bat_entries - image.table.count(0)
    allowed = repair if is_mended else Repair.NONE
    steps = (_header(image), _entries(image), _leaks(image))
    mend_faults(report, steps, allowed, begin=image.begin_session, settle=image.settle, prefix=prefix)
    end = min(int(image.places().ends.max()), image.storage.size)
    report.image_end_offset = max(report.image_end_offset or 0, end)


def _header(image: HdsImage) -> Iterator[Fault]:
    """What `begin_session` and the closing behind it put right."""
    header = image.header
    if image.is_dirty:
        message = "says that the image is in use: it was not closed"
        yield Fault(Severity.LEAK, "header", message, "closed", lambda: None)
    if header.extension_sector:
        cluster = image.storage.read(header.extension_offset, header.cluster_bytes)
        if read_features(image.name, cluster) is None:
            yield Fault(Severity.CORRUPTION, "format extension", "is damaged", "dropped", lambda: None)


def _entries(image: HdsImage) -> Iterator[Fault]:
    """Entries that name no place, or another cluster's."""
    places = image.places()
    size = image.storage.size
    for name, host, cluster in places.beyond_end():

        def clear(cluster: int = cluster) -> None:
            image.set_entry(cluster, 0)

        is_cluster = cluster >= 0
        message = f"expected a place in the file of {size} bytes, found {host}"
        fix = "not allocated any more" if is_cluster else None
        yield Fault(Severity.CORRUPTION, name, message, fix, clear if is_cluster else None)
    for overlap in places.overlaps():
        if overlap.offset >= size:
            continue
        cluster = overlap.other_block if overlap.other_block >= 0 else overlap.one_block
        message = f"shares the file's offset {overlap.offset} with {overlap.one}"
        if cluster < 0:
            yield Fault(Severity.CORRUPTION, overlap.other, message)
            continue

        def separate(cluster: int = cluster) -> None:
            _move_cluster(image, cluster)

        fix = f"cluster {cluster} gets a copy of its own"
        yield Fault(Severity.CORRUPTION, overlap.other, message, fix, separate)


def _leaks(image: HdsImage) -> Iterator[Fault]:
    """Space that nothing refers to, and that takes room: holes in the file do not."""
    for start, end in list(image.places().free_ranges()):
        stop = min(end, image.storage.size)
        # A hole is made of whole pages: what is left of one at either end is no leak.
        first, last = -(-start // _PAGE_BYTES) * _PAGE_BYTES, stop // _PAGE_BYTES * _PAGE_BYTES
        held = sum(length for _, length, is_data in image.storage.segments(first, max(0, last - first)) if is_data)
        if not held:
            continue

        def release(start: int = start, stop: int = stop) -> None:
            if stop == image.storage.size:
                image.storage.truncate(start)
            else:
                image.storage.zero(start, stop - start)

        message = f"{held} bytes that nothing refers to"
        yield Fault(Severity.LEAK, f"offsets {start} to {stop}", message, "given back", release)


def _move_cluster(image: HdsImage, cluster: int) -> None:
    """Give a cluster a place of its own, with a copy of what it reads as now."""
    copy_cluster(image, image.host_of_cluster(cluster), cluster)


def copy_cluster(image: HdsImage, source: int, cluster: int) -> None:
    """Let a cluster lie at the end of the file, with what lies at `source`."""
    cluster_bytes = image.header.cluster_bytes
    host = image.take_cluster()
    for at in range(0, cluster_bytes, _COPY_BYTES):
        data = image.storage.read(source + at, min(_COPY_BYTES, cluster_bytes - at))
        if any(data):
            image.storage.write(host + at, data)
    image.set_entry(cluster, host)
