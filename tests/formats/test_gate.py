"""The gate lets an image open plain files of its own folder, and nothing else unasked."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vdisk.errors import PolicyError, StorageError
from vdisk.formats.gate import MAX_CHAIN_DEPTH, Gate


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    for name in ("top.qcow2", "base.raw", "below/deep.raw"):
        (folder / name).write_bytes(name.encode())
    (tmp_path / "secret").write_bytes(b"canary")
    return folder


def opened(gate: Gate, name: str) -> bytes:
    with gate.open("backing file", name) as storage:
        return storage.read(0, 100)


def test_files_of_the_own_folder_and_below_pass(folder: Path) -> None:
    gate = Gate(folder / "top.qcow2")
    assert opened(gate, "base.raw") == b"base.raw"
    assert opened(gate, "below/deep.raw") == b"below/deep.raw"
    assert opened(gate, "below/../base.raw") == b"base.raw"
    assert opened(gate, str(folder / "base.raw")) == b"base.raw"


def test_a_link_that_stays_inside_passes(folder: Path) -> None:
    (folder / "link").symlink_to("base.raw")
    assert opened(Gate(folder / "top.qcow2"), "link") == b"base.raw"


@pytest.mark.parametrize("name", ["../secret", "link", "linked/secret", "absolute", "below/../../secret"])
def test_what_leads_outside_is_refused_and_says_how_to_allow_it(folder: Path, name: str) -> None:
    (folder / "link").symlink_to("../secret")
    (folder / "linked").symlink_to("..")
    if name == "absolute":
        name = str(folder.parent / "secret")
    with pytest.raises(PolicyError, match=r"outside the image's folder; allow it with --allow-external") as refused:
        opened(Gate(folder / "top.qcow2"), name)
    assert "canary" not in str(refused.value)
    assert opened(Gate(folder / "top.qcow2", allow=[folder.parent]), name) == b"canary"


@pytest.mark.parametrize("name", ["nbd:localhost:1", "json:{}", "http://x/y", "fat:/etc", "file:base.raw", "", "a\0b"])
def test_protocols_and_non_names_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(PolicyError):
        opened(Gate(folder / "top.qcow2", allow=["/"]), name)


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "socket"])
def test_what_is_no_plain_file_is_refused_and_does_not_hang(folder: Path, kind: str) -> None:
    name = "thing"
    if kind == "fifo":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.relpath(folder / name))  # a socket's path may not be long
    else:
        name = "/dev/zero"
    with pytest.raises(PolicyError, match="is not a plain file"):
        opened(Gate(folder / "top.qcow2", allow=["/"]), name)


def test_the_image_itself_and_circles_are_refused(folder: Path) -> None:
    gate = Gate(folder / "top.qcow2")
    with pytest.raises(PolicyError, match="the image itself"):
        opened(gate, "top.qcow2")
    with pytest.raises(PolicyError, match="closes a circle"):
        opened(gate.behind(folder / "base.raw"), "top.qcow2")


def test_a_chain_ends_somewhere(folder: Path) -> None:
    gate = Gate(folder / "top.qcow2")
    for number in range(MAX_CHAIN_DEPTH - 1):
        gate = gate.behind(folder / f"layer{number}")
    with pytest.raises(PolicyError, match="deeper than 64"):
        opened(gate, "base.raw")


def test_a_missing_file_names_the_image_and_the_field(folder: Path) -> None:
    with pytest.raises(StorageError, match=r"top.qcow2: backing file: 'gone.raw': No such file"):
        opened(Gate(folder / "top.qcow2"), "gone.raw")


def test_of_several_names_the_first_that_opens_is_taken(folder: Path) -> None:
    gate = Gate(folder / "top.qcow2")
    with gate.open_first("parent", ["gone.raw", "../secret", "base.raw", "below/deep.raw"]) as storage:  # type: ignore[union-attr]
        assert storage.read(0, 100) == b"base.raw"
    with pytest.raises(StorageError, match="gone"):
        gate.open_first("parent", ["gone.raw", "../secret"])
    assert gate.open_first("parent", []) is None


def test_no_references_forbids_all(folder: Path) -> None:
    with pytest.raises(PolicyError, match="--no-references"):
        opened(Gate(folder / "top.qcow2", references=False), "base.raw")


def test_an_image_without_a_path_names_nothing(folder: Path) -> None:
    with pytest.raises(PolicyError, match="no folder to look in"):
        opened(Gate(None), str(folder / "base.raw"))


def test_behind_an_allowed_image_its_own_folder_counts(folder: Path, tmp_path: Path) -> None:
    templates = tmp_path / "templates" / "debian"
    templates.mkdir(parents=True)
    (templates / "mid.qcow2").write_bytes(b"mid")
    (templates / "base.raw").write_bytes(b"base")
    gate = Gate(folder / "top.qcow2", allow=[templates])
    assert opened(gate.behind(templates / "mid.qcow2"), "base.raw") == b"base"
