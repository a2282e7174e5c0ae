"""OVF packages: disks read where they lie, manifests held against them, archives written that others take."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import struct
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.image import check_map, lay_out
from tests.peers import qemu_compare, require, run, sevenzip_sha256
from vdisk import formats
from vdisk.block import codecs
from vdisk.converter.engine import Engine
from vdisk.converter.plan import Action, make_plan
from vdisk.errors import Corrupt, NotThisFormat, OptionError, PolicyError, Unsupported, VdiskError
from vdisk.ova import Package, is_package, open_disk, ovf, tar
from vdisk.ova.create import OvaWriter
from vdisk.storage.memory import MemoryStorage
from vdisk.storage.staging import Staging

SIZE = (5 << 20) + 3 * 512


def disk_content(seed: int = 1) -> bytes:
    maker = random.Random(seed)
    content = bytearray(SIZE)
    content[:200_000] = maker.randbytes(200_000)
    content[-70_000:] = b"vdisk " * 11_666 + b"end."
    return bytes(content)


def write_ova(path: Path, content: bytes, **options: Any) -> Path:
    with Staging(path) as staging:
        writer = OvaWriter(staging, len(content), options)
        for start in range(0, len(content), writer.unit_bytes):
            unit = content[start : start + writer.unit_bytes].ljust(writer.unit_bytes, b"\0")
            if any(unit):
                storage, host, framed = writer.place_encoded(start, codecs.encode("zlib", unit))
                storage.write(host, framed)
        writer.finish()
        staging.commit(flush=False)
    return path


def envelope(*disks: str, files: str = "") -> str:
    return (
        '<?xml version="1.0"?><Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" '
        'xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"><References>'
        + files
        + "</References><DiskSection><Info/>"
        + "".join(disks)
        + '</DiskSection><VirtualSystem ovf:id="vm"/></Envelope>'
    )


def file_entry(number: int, name: str, more: str = "") -> str:
    return f'<File ovf:id="f{number}" ovf:href="{name}" {more}/>'


def disk_entry(number: int, more: str = "", uri: str = ovf.STREAM_OPTIMIZED) -> str:
    return f'<Disk ovf:diskId="d{number}" ovf:fileRef="f{number}" ovf:capacity="{SIZE}" ovf:format="{uri}" {more}/>'


def pack(path: Path, members: dict[str, bytes], form: int = tarfile.USTAR_FORMAT) -> Path:
    """An archive as Python's tarfile makes it."""
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def vmdk_bytes(folder: Path, seed: int, subformat: str = "streamOptimized") -> bytes:
    path = folder / f"part{seed}.vmdk"
    lay_out(path, "vmdk", {"subformat": subformat}, disk_content(seed))
    return path.read_bytes()


# Written -------------------------------------------------------------------------------------------------------


def test_what_is_written_reads_the_same_without_unpacking(tmp_path: Path) -> None:
    content = disk_content()
    path = write_ova(tmp_path / "vm.ova", content)
    assert [entry.name for entry in tmp_path.iterdir()] == ["vm.ova"]
    with open_disk(path) as disk:
        assert disk.size == SIZE
        assert disk.read(0, disk.size) == content
        check_map(disk, content)
        assert not disk.writable
    assert [entry.name for entry in tmp_path.iterdir()] == ["vm.ova"]


@pytest.mark.peer
def test_the_archive_s_order_sizes_and_digests_are_what_importers_expect(tmp_path: Path) -> None:
    path = write_ova(tmp_path / "vm.ova", disk_content(), name="My <VM> & co", cpus="2", memory="2G", firmware="efi")
    assert path.stat().st_size % 10240 == 0
    run("tar", "-xf", path, "-C", tmp_path)
    with tarfile.open(path) as archive:
        members = {member.name: member for member in archive}
    assert list(members) == ["vm.ovf", "vm.mf", "vm-disk1.vmdk"]
    digests = dict(line.split("= ") for line in (tmp_path / "vm.mf").read_text().splitlines())
    for name in ("vm.ovf", "vm-disk1.vmdk"):
        assert digests[f"SHA256({name})"] == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    text = (tmp_path / "vm.ovf").read_text()
    assert f'ovf:size="{(tmp_path / "vm-disk1.vmdk").stat().st_size}"' in text
    found = ovf.parse(text.encode(), "vm.ovf")
    assert found.name == "My <VM> & co"
    assert found.disks[0].capacity_bytes == SIZE
    assert found.disks[0].populated_bytes == -(-200_000 // 65536) * 65536 + SIZE - (SIZE - 70_000) // 65536 * 65536
    for words in ('vmw:value="efi"', "<rasd:VirtualQuantity>2048<", "<rasd:VirtualQuantity>2<", ">vmx-07<"):
        assert words in text
    (tmp_path / "a.raw").write_bytes(disk_content())
    qemu_compare(tmp_path / "vm-disk1.vmdk", tmp_path / "a.raw", formats=("vmdk", "raw"))
    assert sevenzip_sha256(tmp_path / "vm-disk1.vmdk", kind="VMDK") == hashlib.sha256(disk_content()).hexdigest()


@pytest.mark.parametrize("controller", ["ide", "lsilogic", "pvscsi"])
def test_the_controller_is_the_same_for_machine_and_disk(tmp_path: Path, controller: str) -> None:
    path = write_ova(tmp_path / "vm.ova", disk_content(), adapter_type=controller, network="")
    with Package.open(path) as package, package.open_disk() as disk:
        assert disk.describe().specific["ddb"]["adapterType"] == controller
        assert b"NetworkSection" not in path.read_bytes()[:8192]
        if controller != "ide":
            assert b"<rasd:ResourceType>6<" in path.read_bytes()[:8192]


@pytest.mark.parametrize(
    "options", [{"cpus": "0"}, {"memory": "1K"}, {"name": "a\nb"}, {"hwversion": "3"}, {"os_id": "-1"}, {"no": "x"}]
)
def test_an_option_that_makes_no_sense_is_refused(tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises(OptionError):
        write_ova(tmp_path / "vm.ova", disk_content(), **options)
    assert not list(tmp_path.iterdir())


def test_an_empty_disk_is_a_package_too(tmp_path: Path) -> None:
    with open_disk(write_ova(tmp_path / "vm.ova", bytes(1 << 20))) as disk:
        assert disk.read(0, disk.size) == bytes(1 << 20)


def test_a_member_of_eight_gibibytes_and_more_keeps_its_size() -> None:
    for length in (0, (8 << 30) - 1, 8 << 30, 5 << 40):
        header = tar.member_header("disk.vmdk", length, 1)
        assert tarfile.TarInfo.frombuf(header, "ascii", "strict").size == length


# Read ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_disks_of_a_package_are_chosen_by_number_id_or_file(tmp_path: Path, form: int) -> None:
    long_name = "dossier-" + "x" * 120 + ("" if form == tarfile.USTAR_FORMAT else "é") + ".vmdk"
    if form == tarfile.USTAR_FORMAT:
        long_name = "short.vmdk"
    members = {
        "vm.ovf": envelope(
            disk_entry(1), disk_entry(2), files=file_entry(1, "a.vmdk") + file_entry(2, long_name)
        ).encode(),
        "a.vmdk": vmdk_bytes(tmp_path, 1),
        long_name: vmdk_bytes(tmp_path, 2, "monolithicSparse"),
    }
    path = pack(tmp_path / "vm.ova", members, form)
    assert is_package(path)
    for which, seed in ((1, 1), ("2", 2), ("d1", 1), (long_name, 2)):
        with open_disk(path, which) as disk:
            assert disk.read(0, disk.size) == disk_content(seed)
    with pytest.raises(OptionError, match=r"has 2 disks, choose one of: 1 \(a\.vmdk\), 2"):
        open_disk(path)
    with pytest.raises(OptionError, match="has no disk 3"):
        open_disk(path, 3)


def test_a_descriptor_with_its_files_beside_it_is_read(tmp_path: Path) -> None:
    vmdk_bytes(tmp_path, 1)
    path = tmp_path / "vm.ovf"
    path.write_text(envelope(disk_entry(1), files=file_entry(1, "part1.vmdk")))
    assert is_package(path)
    with open_disk(path) as disk:
        assert disk.read(0, disk.size) == disk_content()
    digest = hashlib.sha1((tmp_path / "part1.vmdk").read_bytes()).hexdigest()
    (tmp_path / "vm.mf").write_text(f"SHA1(part1.vmdk) = {digest}\n")
    with Package.open(path) as package:
        assert package.verify() == 1
        assert package.notes == ["the manifest leaves out vm.ovf"]
    (tmp_path / "vm.mf").write_text(f"SHA1(part1.vmdk) = {digest[:-1]}0\n")
    with pytest.raises(Corrupt, match=r"sha1 of part1\.vmdk"):
        open_disk(path)
    for name in ("../secret.vmdk", "/etc/passwd"):
        (tmp_path / "vm.mf").unlink(missing_ok=True)
        path.write_text(envelope(disk_entry(1), files=file_entry(1, name)))
        with pytest.raises(PolicyError):
            open_disk(path)


def test_a_byte_that_changed_is_found_by_the_manifest(tmp_path: Path) -> None:
    path = write_ova(tmp_path / "vm.ova", disk_content())
    raw = bytearray(path.read_bytes())
    raw[-15_000] ^= 1
    path.write_bytes(raw)
    done: list[tuple[int, int]] = []
    with pytest.raises(Corrupt, match=r"sha256 of vm-disk1\.vmdk: expected [0-9a-f]{64}, found"):
        open_disk(path, progress=lambda part, whole: done.append((part, whole)))
    assert done
    assert done[-1][0] == done[-1][1]
    with open_disk(path, verify=False) as disk:
        assert disk.size == SIZE


@pytest.mark.parametrize(
    ("disk", "entry", "words"),
    [
        (disk_entry(1), file_entry(1, "a.vmdk", 'ovf:compression="gzip"'), "compressed by gzip"),
        (disk_entry(1), file_entry(1, "a.vmdk", 'ovf:chunkSize="1000"'), "chunks"),
        (disk_entry(1, 'ovf:parentRef="d0"'), file_entry(1, "a.vmdk"), "a delta on disk d0"),
        (disk_entry(1, uri="http://example.com/zip"), file_entry(1, "a.vmdk"), "example.com"),
        (disk_entry(1, 'ovf:capacityAllocationUnits="furlongs"'), file_entry(1, "a.vmdk"), "furlongs"),
        (disk_entry(1).replace('ovf:fileRef="f1"', ""), file_entry(1, "a.vmdk"), "has no file"),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path: Path, disk: str, entry: str, words: str) -> None:
    path = pack(tmp_path / "vm.ova", {"vm.ovf": envelope(disk, files=entry).encode(), "a.vmdk": b"x" * 512})
    with pytest.raises(Unsupported, match=words):
        open_disk(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<Envelope", "cannot be read"),
        ("<Other Envelope=''/>", "expected an Envelope"),
        (
            '<!DOCTYPE x [<!ENTITY a "b"><!ENTITY c "&a;&a;&a;">]><Envelope>&c;</Envelope>',
            "cannot be read",
        ),
        ('<!DOCTYPE x SYSTEM "file:///etc/passwd"><Envelope/>', "cannot be read"),
        (envelope('<Disk diskId="a" fileRef="gone" capacity="1"/>'), "fileRef"),
        (envelope('<Disk diskId="a" capacity="many"/>'), "capacity"),
        (envelope(files="<File id='a'/>"), "href is missing"),
    ],
)
def test_a_descriptor_that_cannot_be_right_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = pack(tmp_path / "vm.ova", {"vm.ovf": text.encode()})
    with pytest.raises(VdiskError, match=words) as caught:
        open_disk(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_package_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "a.ova").write_bytes(b"x" * 5000)
    assert not is_package(tmp_path / "a.ova")
    assert not is_package(tmp_path / "gone.ova")
    with pytest.raises(NotThisFormat):
        Package.open(tmp_path / "a.ova")
    with pytest.raises(NotThisFormat, match=r"an \.ovf descriptor"):
        Package.open(pack(tmp_path / "b.ova", {"a.txt": b"hello"}))
    pack(tmp_path / "c.ova", {"vm.ovf": envelope(disk_entry(1), files=file_entry(1, "gone.vmdk")).encode()})
    with pytest.raises(Corrupt, match=r"gone\.vmdk"):
        open_disk(tmp_path / "c.ova")


def test_archives_that_were_damaged_are_read_or_refused(tmp_path: Path) -> None:
    whole = write_ova(tmp_path / "vm.ova", disk_content()).read_bytes()
    maker = random.Random(3)
    for _ in range(150):
        raw = bytearray(whole)
        for _ in range(maker.choice([1, 4])):
            raw[maker.randrange(8192)] = maker.randrange(256)
        (tmp_path / "vm.ova").write_bytes(raw[: maker.choice([len(raw), maker.randrange(len(raw))])])
        try:
            with open_disk(tmp_path / "vm.ova") as disk:
                disk.read(0, disk.size)
        except VdiskError as error:
            assert "\n" not in str(error)


def test_tar_headers_that_ask_for_too_much_are_refused() -> None:
    def archive(kind: bytes, length: int, body: bytes = b"") -> MemoryStorage:
        header = bytearray(tar.member_header("x", length, 0))
        header[156:157] = kind
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        return MemoryStorage(bytes(header) + body.ljust(1024, b"\0"))

    for kind in (b"L", b"x"):
        with pytest.raises(Corrupt, match="at most 1 MiB"):
            tar.read_members(archive(kind, 1 << 40))
    with pytest.raises(Corrupt, match="pax record"):
        tar.read_members(archive(b"x", 20, b"99999 path=evil\n"))
    with pytest.raises(Unsupported, match="sparse members"):
        tar.read_members(archive(b"S", 10))
    with pytest.raises(Corrupt, match="tar member"):
        tar.read_members(archive(b"0", 1 << 50))
    assert tar.read_members(archive(b"0", 0)) == [tar.Member("x", 512, 0)]


def test_gzipped_archives_are_not_taken_for_archives(tmp_path: Path) -> None:
    (tmp_path / "a.ova").write_bytes(gzip.compress(struct.pack("<I", 1) * 1000))
    assert not is_package(tmp_path / "a.ova")


@pytest.mark.peer
def test_a_package_of_gnu_tar_is_read(tmp_path: Path) -> None:
    (tmp_path / "vm.ovf").write_text(envelope(disk_entry(1), files=file_entry(1, "part1.vmdk")))
    vmdk_bytes(tmp_path, 1)
    command = [require("tar"), "--format=gnu", "-cf", "vm.ova", "./vm.ovf", "./part1.vmdk"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    with open_disk(tmp_path / "vm.ova") as disk:
        assert disk.read(0, disk.size) == disk_content()


@pytest.mark.parametrize("source", ["qcow2", "vmdk"])
def test_the_converter_s_engine_fills_a_package(tmp_path: Path, source: str) -> None:
    options = {"subformat": "streamOptimized"} if source == "vmdk" else {}
    lay_out(tmp_path / f"a.{source}", source, options, disk_content())
    with formats.open(tmp_path / f"a.{source}") as disk, Staging(tmp_path / "vm.ova") as staging:
        writer = OvaWriter(staging, disk.size, {})
        plan = make_plan(disk, writer)
        Engine(disk, writer, plan, 2, None).run()
        writer.finish()
        staging.commit(flush=False)
        assert bool(plan.total_bytes[Action.PASS]) == (source == "vmdk")  # its grains go on as they are
    with open_disk(tmp_path / "vm.ova") as disk:
        assert disk.read(0, disk.size) == disk_content()
