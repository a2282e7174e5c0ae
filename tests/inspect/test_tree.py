"""A guest's files by path: links stay inside the guest, and what has no end has one."""

from __future__ import annotations

import pytest

from tests.inspect.guests import MemoryFiles
from vdisk.inspect.tree import Tree, Unreadable


def tree(**files: bytes | str) -> Tree:
    return Tree({"/": MemoryFiles({path.replace("__", "/"): value for path, value in files.items()})})


@pytest.mark.parametrize(
    "target", ["b__real", "b/real", "/b/real", "./b/./real", "../../../b/real", "//b//real", "/b/../b/real"]
)
def test_a_link_leads_inside_the_guest_however_it_is_written(target: str) -> None:
    files = tree(b__real=b"here", link=target.replace("__", "/"))
    assert files.read("/link", 100) == b"here"


def test_links_to_folders_and_to_links() -> None:
    files = tree(
        usr__lib__os="os-release", **{"usr__lib__os-release": b"it"}, lib="usr/lib", l2="lib", deep__up="../l2"
    )
    assert files.read("/lib/os", 10) == files.read("/l2/os", 10) == files.read("/deep/up/os", 10) == b"it"
    assert files.names("/deep/up") == ["os", "os-release"]


def test_a_circle_of_links_ends() -> None:
    with pytest.raises(Unreadable, match="more than 40 symbolic links"):
        tree(a="b", b="a").find("/a")
    with pytest.raises(Unreadable, match="more than 40 symbolic links"):
        tree(a="a/a").find("/a")
    with pytest.raises(Unreadable, match="too long"):
        tree(a="x/" * 3000).find("/a")


def test_what_is_not_there_is_nothing() -> None:
    files = tree(file=b"abc", gone="/nowhere")
    for path in ("/none", "/file/below", "/gone", "/gone/x"):
        assert files.find(path) is None
        assert files.read(path, 10) is None
        assert files.names(path) == []
        assert list(files.chunks(path, 10)) == []
        assert files.text(path) == ""
    assert files.read("/", 10) is None, "a folder is no file"


def test_no_more_is_read_than_asked_for() -> None:
    files = tree(file=b"abcdef" * 100_000)
    assert files.read("/file", 7) == b"abcdefa"
    assert sum(map(len, files.chunks("/file", 300_001))) == 300_001


def test_a_folder_without_end_is_refused() -> None:
    files = Tree({"/": MemoryFiles({f"d/{number}": b"" for number in range(5000)})})
    with pytest.raises(Unreadable, match="more than 4096 names"):
        files.names("/d")


def test_another_file_system_is_mounted_in_it() -> None:
    top, boot = MemoryFiles({"boot/hidden": b"", "link": "/boot"}), MemoryFiles({"vmlinuz": b"k", "up": "../link"})
    files = Tree({"/": top, "/boot": boot})
    assert files.names("/boot") == ["up", "vmlinuz"]
    assert files.read("/boot/up/vmlinuz", 9) == files.read("/link/vmlinuz", 9) == b"k"
    assert files.find("/boot/hidden") is None
