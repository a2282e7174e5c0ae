"""Bundles: a folder of files that DiskDescriptor.xml holds together."""

from __future__ import annotations

import gzip
import hashlib
import random
from pathlib import Path
from uuid import UUID

import pytest

from tests.conformance.image import check_map, lay_out
from tests.peers import real_image
from vdisk import formats
from vdisk.errors import Corrupt, OptionError, PolicyError, StorageError, Unsupported, VdiskError
from vdisk.formats.parallels.bundle import BundleImage
from vdisk.formats.parallels.descriptor import TOP_GUID

MIB = 1 << 20
NO_GUID = UUID(int=0)
ROOT, MIDDLE = UUID(int=0xA), UUID(int=0xB)


def descriptor(
    size: int,
    areas: list[tuple[int, int, dict[UUID, tuple[str, str]]]],
    parents: dict[UUID, UUID],
    *,
    cluster: int = 128,
    extra: str = "",
) -> str:
    """A descriptor; areas are (first sector, sector behind the last, {layer: (type, file)})."""
    storages = ""
    for start, end, images in areas:
        storages += f"<Storage><Start>{start}</Start><End>{end}</End><Blocksize>{cluster}</Blocksize>"
        for guid, (kind, name) in images.items():
            storages += f"<Image><GUID>{{{guid}}}</GUID><Type>{kind}</Type><File>{name}</File></Image>"
        storages += "</Storage>"
    shots = "".join(
        f"<Shot><GUID>{{{guid}}}</GUID><ParentGUID>{{{parent}}}</ParentGUID></Shot>" for guid, parent in parents.items()
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><Parallels_disk_image Version="1.0">'
        f"<Disk_Parameters><Disk_size>{size // 512}</Disk_size><Cylinders>1</Cylinders><Heads>1</Heads>"
        f"<Sectors>{size // 512}</Sectors><Padding>0</Padding>{extra}</Disk_Parameters>"
        f"<StorageData>{storages}</StorageData><Snapshots>{shots}</Snapshots></Parallels_disk_image>"
    )


def make_hds(path: Path, content: bytes, cluster: str = "64K") -> None:
    lay_out(path, "parallels", {"cluster_size": cluster}, content)


def bundle(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "DiskDescriptor.xml").write_text(text)
    return folder


def read_all(path: Path) -> bytes:
    with formats.open(path) as disk:
        content = disk.read(0, disk.size)
        check_map(disk, content)
        return content


@pytest.mark.parametrize("by_folder", [True, False])
def test_what_parallels_desktop_wrote(tmp_path: Path, by_folder: bool) -> None:
    path = real_image("expanding.hdd", tmp_path)
    for packed in path.glob("*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    with formats.open(path if by_folder else path / "DiskDescriptor.xml") as disk:
        assert disk.size == 104857600
        digest = hashlib.sha256(disk.read(0, disk.size)).hexdigest()
        assert digest == "7906281f7a25f13df78c907d7bc4e9313d9a26fa86386c6e2a737a784fe80b8f"
        assert disk.describe().specific["name"] == "expanding"
        assert disk.check().corruptions == 0


def test_a_disk_split_into_files(tmp_path: Path) -> None:
    """Expanding and plain files end to end; writes go to the one that they fall into."""
    maker = random.Random(1)
    parts = [maker.randbytes(3 * MIB), bytes(2 * MIB), maker.randbytes(MIB + 512)]
    folder = tmp_path / "split.hdd"
    folder.mkdir()
    make_hds(folder / "one.hds", parts[0])
    (folder / "two.hds").write_bytes(parts[1])
    make_hds(folder / "three.hds", parts[2])
    areas = []
    at = 0
    for part, name, kind in zip(parts, ("one", "two", "three"), ("Compressed", "Plain", "Compressed"), strict=True):
        areas.append((at, at + len(part) // 512, {TOP_GUID: (kind, f"{name}.hds")}))
        at += len(part) // 512
    model = bytearray(b"".join(parts))
    bundle(folder, descriptor(len(model), areas[::-1], {TOP_GUID: NO_GUID}))
    assert read_all(folder) == model
    with formats.open(folder, writable=True) as disk:
        for _ in range(40):
            offset = maker.randrange(len(model))
            data = maker.randbytes(min(maker.choice([1, 512, 70_000, 2 * MIB]), len(model) - offset))
            disk.write(offset, data)
            model[offset : offset + len(data)] = data
            start = maker.randrange(len(model))
            length = min(maker.choice([512, 200_000]), len(model) - start)
            disk.write_zeroes(start, length, unmap=maker.random() < 0.5)
            model[start : start + length] = bytes(length)
        assert disk.read(0, disk.size) == model
    assert read_all(folder) == model


def snapshot_chain(folder: Path, root_kind: str = "Compressed") -> bytearray:
    """A root, a snapshot and the top layer, each with clusters of its own."""
    folder.mkdir()
    size = 2 * MIB
    content = bytearray(random.Random(7).randbytes(size))
    if root_kind == "Plain":
        (folder / "root.hds").write_bytes(content)
    else:
        make_hds(folder / "root.hds", bytes(content))
    for name, cluster in (("middle.hds", 3), ("top.hds", 9)):
        layer = bytearray(size)
        layer[cluster << 16 : (cluster + 2) << 16] = bytes([cluster]) * (2 << 16)
        content[cluster << 16 : (cluster + 2) << 16] = bytes([cluster]) * (2 << 16)
        make_hds(folder / name, bytes(layer))
    images = {
        ROOT: (root_kind, "root.hds"),
        MIDDLE: ("Compressed", "middle.hds"),
        TOP_GUID: ("Compressed", "top.hds"),
    }
    parents = {TOP_GUID: MIDDLE, MIDDLE: ROOT, ROOT: NO_GUID}
    bundle(folder, descriptor(size, [(0, size // 512, images)], parents))
    return content


@pytest.mark.parametrize("root_kind", ["Compressed", "Plain"])
def test_a_chain_of_snapshots(tmp_path: Path, root_kind: str) -> None:
    folder = tmp_path / "chain.hdd"
    model = snapshot_chain(folder, root_kind)
    assert read_all(folder) == model
    below = {name: (folder / name).read_bytes() for name in ("root.hds", "middle.hds")}
    maker = random.Random(8)
    with formats.open(folder, writable=True) as disk:
        for _ in range(30):
            offset = maker.randrange(len(model))
            length = min(maker.choice([1, 512, 70_000, 300_000]), len(model) - offset)
            if maker.random() < 0.4:
                disk.write_zeroes(offset, length)
                model[offset : offset + length] = bytes(length)
            else:
                data = maker.randbytes(length)
                disk.write(offset, data)
                model[offset : offset + length] = data
        assert disk.read(0, disk.size) == model
        disk.discard(0, MIB)
        assert disk.read(MIB, MIB) == model[MIB:]
        assert disk.read(0, disk.size)[:MIB] == model[:MIB], "a discard does not bring an old snapshot back"
    assert read_all(folder) == model
    assert {name: (folder / name).read_bytes() for name in below} == below, "snapshots are not written to"
    with formats.open(folder) as disk:
        assert disk.check().exit_status == 0
        assert disk.describe().specific["layers"] == [f"{{{guid}}}" for guid in (TOP_GUID, MIDDLE, ROOT)]


def test_a_snapshot_is_read_by_its_guid(tmp_path: Path) -> None:
    """One behind the top layer, and one beside it that another branch was taken from."""
    folder = tmp_path / "chain.hdd"
    model = snapshot_chain(folder)
    aside = UUID(int=0xC)
    make_hds(folder / "aside.hds", b"a" * (64 << 10) + bytes(2 * MIB - (64 << 10)))
    text = (folder / "DiskDescriptor.xml").read_text()
    image = f"<Image><GUID>{{{aside}}}</GUID><Type>Compressed</Type><File>aside.hds</File></Image></Storage>"
    shot = f"<Shot><GUID>{{{aside}}}</GUID><ParentGUID>{{{ROOT}}}</ParentGUID></Shot></Snapshots>"
    text = text.replace("</Storage>", image).replace("</Snapshots>", shot)
    (folder / "DiskDescriptor.xml").write_text(text)
    root = random.Random(7).randbytes(2 * MIB)
    wanted = {ROOT: root, aside: b"a" * (64 << 10) + root[64 << 10 :]}
    with formats.open(folder) as disk:
        assert disk.read(0, disk.size) == model
        assert [shot["id"] for shot in disk.describe().snapshots] == [f"{{{guid}}}" for guid in (MIDDLE, ROOT, aside)]
        assert isinstance(disk, BundleImage)
        for guid, content in wanted.items():
            with disk.open_snapshot(str(guid)) as snapshot:
                assert snapshot.read(0, snapshot.size) == content
                check_map(snapshot, content)
        with pytest.raises(OptionError, match="none of its snapshots"):
            disk.open_snapshot("yesterday")


def test_a_file_outside_the_bundle_needs_leave(tmp_path: Path) -> None:
    make_hds(tmp_path / "outside.hds", b"x" * MIB)
    area = (0, MIB // 512, {TOP_GUID: ("Compressed", "../outside.hds")})
    folder = bundle(tmp_path / "x.hdd", descriptor(MIB, [area], {TOP_GUID: NO_GUID}))
    with pytest.raises(PolicyError, match="outside"):
        formats.open(folder)
    with formats.open(folder, allow=[tmp_path]) as disk:
        assert disk.read(0, 4) == b"xxxx"


ONE = {TOP_GUID: ("Compressed", "one.hds")}
GOOD = descriptor(MIB, [(0, 2048, ONE)], {TOP_GUID: NO_GUID})


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (GOOD.replace("<Padding>0", "<Padding>1"), Unsupported, "padding"),
        (GOOD.replace('Version="1.0"', 'Version="2.0"'), Unsupported, "version"),
        (GOOD.replace("Compressed", "Weird"), Unsupported, "image type"),
        (
            descriptor(MIB, [(0, 2048, ONE)], {}, extra=f"<Encryption><Engine>{{{ROOT}}}</Engine></Encryption>"),
            Unsupported,
            "encryption",
        ),
        (descriptor(2 * MIB, [(0, 2048, ONE)], {TOP_GUID: NO_GUID}), Corrupt, "Storage End"),
        (descriptor(MIB, [(0, 1024, ONE), (1000, 2048, ONE)], {TOP_GUID: NO_GUID}), Corrupt, "Storage Start"),
        (descriptor(MIB, [(0, 2048, ONE)], {TOP_GUID: ROOT, ROOT: TOP_GUID}), Corrupt, "circle"),
        (descriptor(MIB, [(0, 2048, ONE)], {TOP_GUID: ROOT}), Corrupt, "no Shot"),
        (descriptor(MIB, [(0, 2048, ONE)], {TOP_GUID: ROOT, ROOT: NO_GUID}), Corrupt, "no Image"),
        (descriptor(MIB, [(0, 2048, ONE)], {TOP_GUID: NO_GUID}, cluster=2048), Corrupt, "cluster size"),
        (GOOD.replace("<Start>0", "<Start>-1"), Corrupt, "Start"),
        (GOOD.replace("<Start>0", "<Start>0x0"), Corrupt, "Start"),
        (GOOD.replace("<End>2048", "<End>99999999999999999999"), Corrupt, "End"),
        (GOOD[:-30], Corrupt, "XML"),
        (GOOD.replace("one.hds", "missing.hds"), StorageError, "missing.hds"),
        (
            GOOD.replace("?>", '?><!DOCTYPE p [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>', 1).replace("one.hds", "&b;"),
            Corrupt,
            "XML",
        ),
    ],
)
def test_a_descriptor_that_cannot_be_right(tmp_path: Path, text: str, error: type[VdiskError], words: str) -> None:
    folder = bundle(tmp_path / "x.hdd", text)
    make_hds(folder / "one.hds", b"x" * MIB)
    with pytest.raises(error, match=words) as caught:
        formats.open(folder)
    assert "\n" not in str(caught.value)


def test_a_new_bundle_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new.hdd"
    formats.create(target, MIB)
    assert sorted(path.name for path in target.iterdir()) == [
        "DiskDescriptor.xml",
        f"new.hdd.0.{{{TOP_GUID}}}.hds",
    ]
    with pytest.raises(StorageError, match="folder"):
        formats.create(target, MIB)
    with pytest.raises(VdiskError):
        formats.create(tmp_path / "other.hdd", 1 << 62)
    assert [path.name for path in tmp_path.iterdir()] == ["new.hdd"]
