"""A Windows guest as its registry has it: on NTFS, in states that it may have been left in, and damaged."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest

import vdisk
from tests.inspect.guests import START, MemoryFiles, debian
from tests.inspect.windows_guests import hive, ntfs_disk, windows
from vdisk.block.filters import Window
from vdisk.inspect.filesystems import recognise
from vdisk.inspect.guest import Guest
from vdisk.inspect.guest_reader import Volume, read_boot_files, read_guest
from vdisk.inspect.places import Places
from vdisk.inspect.registry import Hive
from vdisk.inspect.survey import Mounted, survey
from vdisk.inspect.tree import Unreadable


def look(*systems: dict[str, bytes | str]) -> Guest:
    guest = Guest()
    survey([Mounted(f"partition {n}", MemoryFiles(files)) for n, files in enumerate(systems, 1)], guest)
    return guest


@pytest.mark.peer
def test_a_windows_on_ntfs(tmp_path: Path) -> None:
    files = windows(agents=("cloudbase-init", "VMTools"), **{"hiberfil.sys": b"HIBR" + bytes(8000)})
    with vdisk.open(ntfs_disk(tmp_path / "disk.img", files), format="raw") as disk:
        window = Window(disk, START, disk.size - START)
        volume = Volume("partition 1", recognise(window).kind, window)
        guest = read_guest([volume])
        assert guest.problems == []
        assert (guest.root, guest.family, guest.os) == ("partition 1 (NTFS)", "windows", "Windows Server 2022 Standard")
        assert (guest.build, guest.architecture) == ("20348", "x86_64")
        assert guest.boot_drivers == ["storahci", "stornvme"]
        assert guest.other_drivers == ["atapi", "intelide"]
        assert guest.agents == ["cloudbase-init", "VMware Tools"]
        assert guest.is_hibernated
        assert not guest.is_unwritten
        # Where its files are, and the name of what a guest read last.
        found = {one.path: one.extents for one in read_boot_files(volume)}
        first, end = found["/Windows/System32/ntoskrnl.exe"][0]
        assert window.read(first, min(end - first, 100_000)) == (b"MZ" * 50_000)[: end - first]
        place = START + found["/Windows/System32/config/SYSTEM"][0][0]
        assert Places().name_of(disk, place) == "/Windows/System32/config/SYSTEM in partition 1 (NTFS)"
        assert "/Windows/System32/drivers/storahci.sys" in found


@pytest.mark.peer
def test_what_ntfs_alone_has_is_read_as_the_rest_is(tmp_path: Path) -> None:
    """Hundreds of names in a folder, which are a tree of their own, and a name in another case."""
    many: dict[str, bytes | str] = {f"Windows/System32/drivers/driver{n}.sys": b"MZ" for n in range(900)}
    files = {
        path.replace("Windows/System32/config", "WINDOWS/system32/Config"): data for path, data in windows().items()
    }
    merged = {path.replace("Windows/System32", "WINDOWS/system32"): data for path, data in {**files, **many}.items()}
    with vdisk.open(ntfs_disk(tmp_path / "disk.img", merged), format="raw") as disk:
        guest = read_guest([Volume("partition 1", "NTFS", Window(disk, START, disk.size - START))])
    assert guest.problems == []
    assert guest.boot_drivers == ["storahci", "stornvme"]


def test_windows_11_is_called_by_its_name() -> None:
    assert look(windows(name="Windows 10 Pro", build="22631")).os == "Windows 11 Pro"
    assert look(windows(name="Windows 10 Pro", build="19045")).os == "Windows 10 Pro"
    assert look(windows(name="Windows Server 2025 Datacenter", build="26100")).os == "Windows Server 2025 Datacenter"


def test_a_driver_without_its_file_is_none() -> None:
    files = windows(boot=("viostor", "storahci"))
    del files["Windows/System32/drivers/viostor.sys"]
    assert look(files).boot_drivers == ["storahci"]


@pytest.mark.parametrize(
    ("head", "is_asleep"), [(b"hibr", True), (b"HIBR", True), (b"RSTR", True), (b"wake", False), (bytes(4), False)]
)
def test_hibernation_is_told_by_the_files_first_bytes(head: bytes, is_asleep: bool) -> None:
    assert look(windows(**{"hiberfil.sys": head * 100})).is_hibernated == is_asleep


def test_a_registry_that_was_in_use_is_told() -> None:
    assert look(windows(sequences=(8, 7))).is_unwritten


def test_of_two_systems_the_first_is_told() -> None:
    both = look(windows(), debian("virtio_blk"))
    assert (both.family, both.passed_over) == ("windows", ["partition 2: another system"])
    other = look(debian("virtio_blk"), windows())
    assert (other.family, other.passed_over) == ("linux", ["partition 2: another system"])
    assert other.boot_drivers == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is no registry hive"),
        (b"regf", "it is no registry hive"),
        (b"MZ" * 5000, "it is no registry hive"),
        (hive({"Select": {}}), "it does not say which control set is current"),
        (hive({})[:4096], ""),
        (hive({"Select": {"Current": 1}})[:5000], ""),
    ],
)
def test_a_registry_that_cannot_be_read_is_a_problem(content: bytes, why: str) -> None:
    files = windows()
    files["Windows/System32/config/SYSTEM"] = content
    (problem,) = look(files).problems
    assert problem.startswith(f"the registry's SYSTEM: could not be read: {why}")
    assert "\n" not in problem
    assert look(files).os == "Windows Server 2022 Standard"


@pytest.mark.peer
def test_flipped_bytes_of_a_registry_are_told_or_harmless(tmp_path: Path) -> None:
    path, chance, told = ntfs_disk(tmp_path / "disk.img", windows()), random.Random(7), 0
    for _ in range(20):
        with vdisk.Overlay(vdisk.open(path, format="raw")) as disk:
            volume = Volume("partition 1", "NTFS", Window(disk, START, disk.size - START))
            found = {one.path: one.extents for one in read_boot_files(volume)}
            first, end = found["/Windows/System32/config/SYSTEM"][0]
            for _ in range(chance.choice((1, 10, 100))):
                disk.write(START + first + chance.randrange(end - first), bytes([chance.randrange(256)]))
            guest = read_guest([volume], seconds=20)
        assert guest.os == "Windows Server 2022 Standard"
        assert all(len(problem.splitlines()) == 1 and "20 s" not in problem for problem in guest.problems)
        told += bool(guest.problems) or guest.boot_drivers != ["storahci", "stornvme"]
    assert told, "some of it must be seen"


def test_values_of_a_hive() -> None:
    made = Hive(io.BytesIO(hive({"A": {"b": {"Number": 70_000, "Text": "größe"}}, "Z": {}})))
    assert made.names("") == ["A", "Z"]
    assert made.number(r"a\B", "NUMBER") == 70_000
    assert made.text(r"A\b", "text") == "größe"
    assert (made.number(r"A\b", "Text"), made.text(r"A\b", "Number")) == (None, "")
    assert (made.number(r"A\x", "Number"), made.text("A", "x"), made.names("x")) == (None, "", [])
    with pytest.raises(Unreadable, match="no registry hive"):
        Hive(io.BytesIO(b"regf"))
