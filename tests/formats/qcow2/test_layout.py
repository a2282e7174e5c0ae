"""A new image's tables are written in pieces when there are many, so that memory does not grow with the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.image import lay_out
from tests.formats.qcow2.test_matrix import SIZE, some_content
from tests.peers import qemu_check, qemu_compare
from vdisk import formats
from vdisk.formats.qcow2 import layout


@pytest.mark.peer
@pytest.mark.parametrize("options", [{"cluster_size": "512"}, {"cluster_size": "16K", "extended_l2": "on"}])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("preallocation", ["off", "metadata"])
def test_tables_written_in_pieces(
    options: dict[str, str], compress: bool, preallocation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "_TABLES_KEPT_BYTES", 2048)
    path, raw = tmp_path / "a.qcow2", tmp_path / "a.raw"
    content = bytes(some_content(80))
    lay_out(path, "qcow2", {**options, "preallocation": preallocation}, content, compress=compress)
    raw.write_bytes(content)
    qemu_check(path)
    qemu_compare(path, raw)
    with formats.open(path) as disk:
        assert disk.read(0, SIZE) == content
        assert disk.check().findings == []


def test_a_sparse_exbibyte_is_no_burden(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    formats.create(path, "256P", options={"cluster_size": "2M"})
    with formats.open(path, writable=True) as disk:
        extents = list(disk.map())
        assert [extent.length for extent in extents] == [1 << 58]
        disk.write((1 << 58) - 3, b"end")
        assert disk.read((1 << 58) - 3, 3) == b"end"
        assert len(list(disk.map())) == 2
    assert path.stat().st_blocks * 512 < 64 << 20
