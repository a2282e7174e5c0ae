"""`convert --for`: every target's image passes `compat --for` and holds the same disk."""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
import tarfile
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.compat.disks import efi_disk
from tests.peers import libyal_info, qemu_compare, qemu_img, qemu_img_info
from tests.peers import run as run_peer
from vdisk import formats
from vdisk.compat import TARGETS, find_target
from vdisk.compat.examine import examine, open_anything
from vdisk.compat.fit import convert_for
from vdisk.compat.rules import _PACKAGE_SUFFIXES, _SUFFIXES
from vdisk.converter import convert
from vdisk.errors import OptionError, VdiskError

HELLO = Path(__file__).parents[2] / "samples" / "hello.raw"
MIB = 1 << 20
NAMES = [target.name for target in TARGETS]


def made_for(name: str, folder: Path, source: Path = HELLO) -> Path:
    """`source` as `name` takes it."""
    recipe = find_target(name).recipe
    suffix = _PACKAGE_SUFFIXES[recipe.package] if recipe.package else _SUFFIXES[recipe.format]
    path = folder / f"made{suffix}"
    fitted = convert_for(source, path, name)
    assert fitted.verdict is not None
    assert fitted.verdict.fits, fitted.verdict.findings
    return path


@pytest.mark.parametrize("name", NAMES)
def test_what_is_made_for_a_target_fits_it_and_holds_the_same_disk(name: str, tmp_path: Path) -> None:
    source = efi_disk(tmp_path / "efi.img") if name == "hyper-v-gen2" else HELLO
    path = made_for(name, tmp_path, source)
    assert examine(path, [name]).fits_all
    original = source.read_bytes()
    with open_anything(path) as (image, _, _):
        assert image.read(0, len(original)) == original
        assert not any(image.read(len(original), min(MIB, image.size - len(original))))
        assert image.size % find_target(name).size_multiple == 0
        assert image.size >= (find_target(name).smallest_bytes or 0)


LISTED = [(target.name, row) for target in TARGETS for row in target.supports if row.listed and row.mode == "native"]


@pytest.mark.parametrize(("name", "row"), LISTED, ids=lambda value: value if isinstance(value, str) else value.format)
def test_each_listed_cell_by_a_conversion(name: str, row: object, tmp_path: Path) -> None:
    row = find_target(name).support(row.format)  # type: ignore[attr-defined]
    assert row is not None
    path = tmp_path / f"disk{_SUFFIXES[row.format]}"
    convert(HELLO, path, target_format=row.format)
    assert examine(path, [name]).fits_all


@pytest.mark.parametrize("name", ["hyper-v", "virtualbox", "xenserver"])
def test_each_listed_cell_that_is_wrong_is_told_and_mended(name: str, tmp_path: Path) -> None:
    for row in find_target(name).supports:
        if not row.listed or row.opens:
            continue
        path = tmp_path / f"claimed{_SUFFIXES[row.format]}"
        convert(HELLO, path, target_format=row.format)
        (verdict,) = examine(path, [name]).verdicts
        assert verdict.listed is True
        assert not verdict.fits
        assert any(f"--for {name}" in finding.fix for finding in verdict.findings)
        folder = tmp_path / row.format
        folder.mkdir()
        assert examine(made_for(name, folder, path), [name]).fits_all


def test_an_azure_vhd_by_rules_of_its_own(tmp_path: Path) -> None:
    odd = tmp_path / "odd.img"
    odd.write_bytes(HELLO.read_bytes() + bytes(5 * 512))
    path = made_for("azure", tmp_path, odd)
    raw = path.read_bytes()
    assert len(raw) == 2 * MIB + 512, "the next whole MiB, and the footer"
    footer = raw[-512:]
    assert footer[:8] == b"conectix"
    assert struct.unpack_from(">Q", footer, 48)[0] == 2 * MIB, "current size"
    assert struct.unpack_from(">I", footer, 60)[0] == 2, "fixed"
    assert (~(sum(footer) - sum(footer[64:68]))) & 0xFFFFFFFF == struct.unpack_from(">I", footer, 64)[0]


@pytest.mark.peer
def test_an_azure_vhd_as_two_other_readers_have_it(tmp_path: Path) -> None:
    path = made_for("azure", tmp_path)
    said = libyal_info("vhd", path)
    assert "Fixed" in said
    assert f"({path.stat().st_size - 512} bytes)" in said
    found = qemu_img_info(path, format="vpc")
    assert found["virtual-size"] == path.stat().st_size - 512, "by the size, not by the geometry"
    qemu_compare(path, HELLO, formats=("vpc", "raw"), same_size=False)


@pytest.mark.parametrize(("name", "kind"), [("vmware", "monolithicSparse"), ("workstation", "monolithicSparse"),
                                            ("esxi", "vmfs")])  # fmt: skip
def test_vmwares_disks_name_their_controller_and_kind(name: str, kind: str, tmp_path: Path) -> None:
    head = made_for(name, tmp_path).read_bytes()[:4096]
    assert b'ddb.adapterType = "lsilogic"' in head
    assert f'createType="{kind}"'.encode() in head


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (60, 3, "disk type is 3"),
        (64, 1, "checksum"),
        (52, 512, "the file holds"),
        (0, 7, "does not end in a VHD footer"),
    ],
)
def test_azure_refuses_a_footer_with_a_wrong_field(at: int, value: int, said: str, tmp_path: Path) -> None:
    from vdisk.compat.packages.azure import problems_of

    path = made_for("azure", tmp_path)
    assert problems_of(path) == []
    raw = bytearray(path.read_bytes())
    struct.pack_into(">I", raw, len(raw) - 512 + at, value)
    path.write_bytes(raw)
    assert any(said in problem for problem in problems_of(path))


@pytest.mark.peer
def test_qemu_imgs_vhd_of_a_rounded_size_is_not_for_azure(tmp_path: Path) -> None:
    path = tmp_path / "rounded.vhd"
    qemu_img("create", "-f", "vpc", "-o", "subformat=fixed", path, "10M")
    (verdict,) = examine(path, ["azure"], format="vhd").verdicts
    assert any("whole multiple of 1 MiB" in finding.why for finding in verdict.findings)


def test_google_clouds_archive_is_of_the_old_gnu_kind(tmp_path: Path) -> None:
    path = made_for("gcp", tmp_path)
    with gzip.open(path) as file:
        header = file.read(512)
    assert header[257:265] == b"ustar  \0"
    with tarfile.open(path) as archive:
        (member,) = archive.getmembers()
    assert (member.name, member.size) == ("disk.raw", 1 << 30)


@pytest.mark.peer
def test_gnu_tar_reads_the_archives(tmp_path: Path) -> None:
    box = made_for("vagrant-libvirt", tmp_path)
    run_peer("tar", "-xzf", box, "-C", tmp_path)
    assert json.loads((tmp_path / "metadata.json").read_text()) == {
        "provider": "libvirt",
        "format": "qcow2",
        "virtual_size": 1,
    }
    assert "images are identical" in qemu_img("compare", tmp_path / "box.img", HELLO).lower()


def test_an_oci_layout_by_its_digests(tmp_path: Path) -> None:
    layout = made_for("kubevirt", tmp_path)
    for blob in (layout / "blobs" / "sha256").iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads((layout / "blobs" / "sha256" / index["manifests"][0]["digest"][7:]).read_text())
    layer = layout / "blobs" / "sha256" / manifest["layers"][0]["digest"][7:]
    config = json.loads((layout / "blobs" / "sha256" / manifest["config"]["digest"][7:]).read_text())
    plain = gzip.decompress(layer.read_bytes())
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(plain).hexdigest()}"]
    with tarfile.open(layer) as archive:
        owners = {member.name: (member.uid, member.gid) for member in archive}
    assert owners == {"disk": (107, 107), "disk/disk.qcow2": (107, 107)}
    raw = bytearray(layer.read_bytes())
    raw[-1] ^= 1
    layer.write_bytes(raw)
    with pytest.raises(VdiskError, match="blob"):
        examine(layout, ["kubevirt"])


def test_a_virtualbox_box_names_its_disk(tmp_path: Path) -> None:
    box = made_for("vagrant-virtualbox", tmp_path)
    with tarfile.open(box) as archive:
        assert archive.getnames() == ["metadata.json", "Vagrantfile", "box.ovf", "box-disk001.vmdk"]


def test_damaged_packages_are_refused_in_one_line(tmp_path: Path) -> None:
    box = made_for("vagrant-libvirt", tmp_path)
    whole = box.read_bytes()
    for length in range(200, len(whole), len(whole) // 7):
        box.write_bytes(whole[:length])
        try:
            examination = examine(box, ["vagrant-libvirt"])
        except VdiskError:
            continue
        assert not examination.fits_all


def test_a_disk_too_small_is_prolonged(tmp_path: Path) -> None:
    path = made_for("ibm", tmp_path)
    with formats.open(path) as image:
        assert image.size == 10 * 10**9


def test_options_that_contradict_the_target_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="azure takes subformat=fixed"):
        convert_for(HELLO, tmp_path / "a.vhd", "azure", options={"subformat": "dynamic"})
    with pytest.raises(OptionError, match=r"must end in \.vhdx"):
        convert_for(HELLO, tmp_path / "a.img", "hyper-v-gen2")
    assert not list(tmp_path.iterdir())


def test_the_command_converts_for_a_target(run: Run, tmp_path: Path) -> None:
    ran = run("convert", HELLO, tmp_path / "d.vhd", "--for", "azure", "--json")
    assert ran.status == 0
    assert json.loads(ran.out)["verdict"]["fits"] is True
    assert run("compat", tmp_path / "d.vhd", "--for", "azure").status == 0
    refused = run("convert", HELLO, tmp_path / "d.vhdx", "--for", "hyper-v-gen2")
    assert refused.status == 1
    assert "boots by BIOS only" in refused.err
    assert run("convert", HELLO, tmp_path / "x", "--for", "azure", "-O", "raw").status == 2
    assert run("convert", HELLO, tmp_path / "y.tar.gz", "--for", "gcp", "--dry-run").status == 0
    assert not (tmp_path / "y.tar.gz").exists()
