"""Loss of power at any moment leaves a Parallels image that opens, is sound and holds what was flushed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conformance.image import lay_out
from tests.crash import CrashRig, State
from vdisk.block.device import BlockDevice
from vdisk.formats.gate import Gate
from vdisk.formats.image import OpenRequest
from vdisk.formats.parallels.bundle import BundleLayer, Part
from vdisk.formats.parallels.hds import HdsImage
from vdisk.storage.base import Storage
from vdisk.storage.memory import MemoryStorage

SIZE = 600 << 10
VARIANTS = [{"cluster_size": "64K"}, {"version": "1", "cluster_size": str(63 * 512)}]


def open_it(files: Mapping[str, Storage], writable: bool) -> HdsImage:
    return HdsImage.open_kind(files["a"], OpenRequest(Gate(None), writable=writable))


def start_image(folder: Path, options: dict[str, str], size: int = SIZE) -> bytes:
    """An image with some data in it."""
    path = folder / "disk.hds"
    lay_out(path, "parallels", options, (bytes(100 << 10) + b"base" * (25 << 10)).ljust(size, b"\0"))
    return path.read_bytes()


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("options", VARIANTS)
def test_random_changes(tmp_path: Path, seed: int, options: dict[str, str]) -> None:
    rig = CrashRig({"a": start_image(tmp_path, options)}, open_it)
    unclosed = 0

    def verify(disk: BlockDevice, state: State) -> None:
        nonlocal unclosed
        assert isinstance(disk, HdsImage)
        unclosed += disk.is_dirty

    rig.scribble(seed, 60, most_bytes=150_000)
    rig.disk.close()
    rig.safe()
    assert rig.replay(seed, every=max(1, len(rig.events) // 200), mixtures=2, verify=verify) > 200
    assert unclosed > 100


def test_the_top_layer_of_a_split_disk(tmp_path: Path) -> None:
    """Two files that are written together, over two that stay as they are."""
    roots = [start_image(tmp_path / name, VARIANTS[0]) for name in ("", "")]
    cluster = 64 << 10
    half = SIZE // cluster * cluster
    empty = tmp_path / "empty.hds"
    lay_out(empty, "parallels", VARIANTS[0], bytes(SIZE))

    def open_layers(files: Mapping[str, Storage], writable: bool) -> BlockDevice:
        layers = []
        for names, is_top in ((("one", "two"), True), (("root one", "root two"), False)):
            parts = []
            for number, name in enumerate(names):
                storage = files[name] if is_top else MemoryStorage(roots[number], name)
                image = HdsImage.open_part(storage, writable=writable and is_top, shows_parent=is_top)
                parts.append(Part(number * half, (number + 1) * half, image))
            layers.append(BundleLayer(names[0], 2 * half, parts, writable=writable and is_top))
        layers[0].backing = layers[1]
        return layers[0]

    rig = CrashRig({"one": empty.read_bytes(), "two": empty.read_bytes()}, open_layers)
    rig.scribble(3, 50, most_bytes=150_000)
    rig.disk.close()
    rig.safe()
    assert rig.replay(4, every=max(1, len(rig.events) // 200), mixtures=2) > 200


@pytest.mark.parametrize("options", [*VARIANTS, {"cluster_size": "512"}])
def test_resizing(tmp_path: Path, options: dict[str, str]) -> None:
    """Only the disk's length may differ: what lies in both is there. Small clusters have to make room for the table."""
    rig = CrashRig({"a": start_image(tmp_path, options)}, open_it)
    disk = rig.disk
    assert isinstance(disk, HdsImage)
    rig.write(1000, b"kept" * 1000)
    rig.write(SIZE - 512, b"tail" * 128)
    rig.flush()
    sizes = (SIZE - 1024, 2 * SIZE, SIZE // 2, 4 * SIZE)
    for size in sizes:
        disk.resize(size, shrink=True)
    disk.close()
    content = bytes(rig.content[: SIZE // 2])
    count = 0
    for state in rig.states(1, every=max(1, len(rig.events) // 150), mixtures=2):
        if state.events < rig.flushes[-1][0]:
            continue
        count += 1
        found = open_it({"a": MemoryStorage(state.files["a"])}, False)
        assert found.size in (SIZE, *sizes), state.what
        assert found.read(0, SIZE // 2) == content, state.what
        assert found.check().corruptions == 0, state.what
        grown_from = {2 * SIZE: SIZE - 1024, 4 * SIZE: SIZE // 2}.get(found.size, found.size)
        assert not any(found.read(grown_from, found.size - grown_from)), state.what
        found.close()
    assert count > 20
