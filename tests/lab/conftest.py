"""The lab's tests need a complete KVM and the Debian images: `make lab` has both. Elsewhere they skip."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.conftest import run

__all__ = ["run"]

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is in this folder, outside of the lab."""
    if os.environ.get("VDISK_LAB") == "1":
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs the lab, a complete KVM in an emulated machine: make lab"))


@pytest.fixture(scope="session")
def images() -> Path:
    """The folder of images that scripts/lab/images.py made; nothing in it can be written."""
    return Path(os.environ["VDISK_LAB_IMAGES"])
