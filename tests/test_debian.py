"""What the Debian disk is built from: the mirror that apt is set up with, in either of apt's forms."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests import debian


@pytest.fixture
def script() -> ModuleType:
    """scripts/debian_disk.py as a module."""
    spec = importlib.util.spec_from_file_location("debian_disk", debian.SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name.

    sys.modules["debian_disk"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    """An empty /etc/apt."""
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_the_mirror_of_a_one_line_list(script: ModuleType, apt: Path) -> None:
    (apt / "sources.list").write_text(
        "# deb http://commented/debian bookworm main\n"
        "deb-src http://source/debian bookworm main\n"
        "deb http://other/debian trixie main\n"
        "deb http://contrib/debian bookworm contrib\n"
        "deb [arch=amd64 signed-by=/k] http://mirror/debian bookworm main contrib\n"
    )
    assert script.apt_mirror("bookworm", apt) == "http://mirror/debian"
    assert script.apt_mirror("sid", apt) is None


def test_the_mirror_of_a_stanza(script: ModuleType, apt: Path) -> None:
    (apt / "sources.list.d" / "debian.sources").write_text(
        "Types: deb\nURIs: http://off/debian\nSuites: bookworm\nComponents: main\nEnabled: no\n\n"
        "Types: deb deb-src\n# a remark\nURIs: http://mirror/debian\nSuites: bookworm bookworm-updates\n"
        "Components: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n"
    )
    assert script.apt_mirror("bookworm", apt) == "http://mirror/debian"


def test_no_apt_no_mirror(script: ModuleType, apt: Path) -> None:
    assert script.apt_mirror("bookworm", apt / "nowhere") is None
