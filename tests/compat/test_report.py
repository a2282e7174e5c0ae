"""`--boot` and `--report`: a boot in each row, and a page that shows all of it and needs nothing from elsewhere."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests import peers
from tests.cli.conftest import Run
from tests.compat.disks import efi_disk, mbr_disk
from tests.hv.guests import needs_kvm
from vdisk import formats
from vdisk.compat.examine import opened
from vdisk.compat.report import allocation_cells, report
from vdisk.compat.trial import try_boots

HELLO = Path(__file__).parents[2] / "samples" / "hello.raw"
QCOW2 = HELLO.with_name("hello.qcow2")
GREETING = "Hello"
_EMPTY = {"meta", "br", "rect"}


class Page(HTMLParser):
    """A page's text; fails at marks that do not close, and at anything that would be fetched."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        assert not {"src", "href", "srcset", "onload", "onclick"} & set(names), (tag, attrs)
        assert tag not in ("script", "link", "iframe", "img")
        if tag == "rect":
            self.cells.append(names["class"] or "")
        if tag not in _EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "rect":
            self.cells.append(dict(attrs)["class"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        """All of it."""
        return " ".join(self.words)


@pytest.mark.kvm
@needs_kvm
def test_a_boot_stands_in_the_row_and_each_profile_boots_once(run: Run, tmp_path: Path) -> None:
    page_path = tmp_path / "page.html"
    names = ("kvm", "xen", "xcp-ng", "azure")
    asked = [word for name in names for word in ("--for", name)]
    ran = run("compat", QCOW2, *asked, "--boot", "--expect", GREETING, "--timeout", 30, "--report", page_path, "--json")
    assert ran.err.count("booting as xen") == 1, ran.err
    rows = {row["target"]: row for row in json.loads(ran.out)["targets"]}
    assert rows["kvm"]["boot"]["ok"] is True
    assert rows["xen"]["boot"]["profile"] == "xen"
    assert any("xen-blkfront" in note for note in rows["xen"]["boot"]["notes"])
    assert rows["azure"]["boot"]["tried"] is False
    assert any("hv_storvsc" in note for note in rows["azure"]["boot"]["notes"])
    page = Page(page_path.read_text(encoding="utf-8"))
    assert GREETING in page.text
    assert "Not imitated" in page.text
    assert "CPUID" in page.text


@pytest.mark.kvm
@needs_kvm
def test_a_disk_that_does_not_boot_does_not_fit(tmp_path: Path) -> None:
    halting = mbr_disk(tmp_path / "halt.img", 0x83, b"", code=b"\xfa\xf4\xeb\xfd", active=True)
    with opened(halting, ["kvm"]) as (disk, examination):
        assert examination.fits_all
        try_boots(disk, examination, timeout=20, engine="embedded")
    assert not examination.fits_all
    assert any(finding.what.startswith("it does not boot as kvm") for finding in examination.verdicts[0].findings)


def test_a_uefi_disk_is_not_booted_by_bios(tmp_path: Path) -> None:
    with opened(efi_disk(tmp_path / "efi.img"), ["kvm"]) as (disk, examination):
        try_boots(disk, examination)
    boot = examination.verdicts[0].boot
    assert boot is not None
    assert "UEFI only" in boot["reason"]
    assert examination.fits_all


def test_the_page_holds_the_table_the_partitions_and_the_map() -> None:
    with opened(QCOW2) as (disk, examination):
        page = Page(report(examination, disk))
    for words in ("Oracle VirtualBox", "reads only", "boots by BIOS", "mbr", "--for azure"):
        assert words in page.text
    assert "data" in page.cells
    assert "zeros" in page.cells or "absent" in page.cells


def test_a_hostile_name_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "<script>alert(1)<\x1b[31m>&'\".raw"
    path.write_bytes(HELLO.read_bytes())
    with opened(path, ["kvm", "virtualbox"]) as (disk, examination):
        html = report(examination, disk)
    assert "<script>" not in html
    assert "\x1b" not in html
    assert "<script>alert(1)" in Page(html).text


def test_the_map_shows_the_data_where_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "thin.qcow2"
    formats.create(path, "1G")
    with formats.open(path, writable=True) as image:
        image.write(512 << 20, b"x" * 65536)
    with formats.open(path) as image:
        cells = allocation_cells(image, 64)
    assert len(cells) == 64
    assert [number for number, kind in enumerate(cells) if kind == "data"] == [32]


@pytest.mark.peer
def test_a_browser_shows_the_page_without_errors(tmp_path: Path) -> None:
    from PIL import Image

    with opened(QCOW2, ["kvm", "virtualbox"]) as (disk, examination):
        path = tmp_path / "page.html"
        path.write_text(report(examination, disk), encoding="utf-8")
    picture = tmp_path / "page.png"
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path}/home")
    peers.run("chromium", *options, "--window-size=1000,1200", f"--screenshot={picture}", f"file://{path}")
    with Image.open(picture) as shown:
        assert shown.size == (1000, 1200)
        colours = {colour for _, colour in shown.convert("RGB").getcolors(1 << 24) or ()}
    assert (0x25, 0x63, 0xA8) in colours, "the map's data is drawn in its colour"
    assert (0xB3, 0x26, 0x1E) in colours, "a no is red"
    dom = peers.run("chromium", *options, "--dump-dom", f"file://{path}").stdout.decode()
    assert "Oracle VirtualBox" in dom


@pytest.mark.kvm
@needs_kvm
def test_a_boot_that_was_not_over_in_time_is_a_warning(tmp_path: Path) -> None:
    with opened(QCOW2, ["kvm"]) as (disk, examination):
        try_boots(disk, examination, expect="what it never says", timeout=0.2, engine="embedded")
    (verdict,) = examination.verdicts
    assert verdict.fits
    assert any("was not over in time" in finding.what for finding in verdict.findings if finding.level == "warning")
