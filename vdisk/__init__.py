"""vdisk: open, check, convert and boot virtual disk images.

::

    with vdisk.open("disk.vmdk") as disk:
        first = disk.read(0, 512)
        for extent in disk.map():
            print(extent.start, extent.length, extent.kind.name)
    vdisk.convert("disk.vmdk", "disk.qcow2", progress=print)

The names below are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vdisk.block.device import BlockDevice as BlockDevice
    from vdisk.block.extent import Extent as Extent
    from vdisk.block.extent import Kind as Kind
    from vdisk.block.filters import ReadOnly as ReadOnly
    from vdisk.block.filters import Window as Window
    from vdisk.block.overlay import Overlay as Overlay
    from vdisk.converter import convert as convert
    from vdisk.errors import Corrupt as Corrupt
    from vdisk.errors import HypervisorError as HypervisorError
    from vdisk.errors import ImageError as ImageError
    from vdisk.errors import InUse as InUse
    from vdisk.errors import NotThisFormat as NotThisFormat
    from vdisk.errors import OptionError as OptionError
    from vdisk.errors import PolicyError as PolicyError
    from vdisk.errors import StorageError as StorageError
    from vdisk.errors import Unsupported as Unsupported
    from vdisk.errors import VdiskError as VdiskError
    from vdisk.formats import create as create
    from vdisk.formats import open as open
    from vdisk.formats import probe as probe
    from vdisk.serve.engines import boot as boot

_HOME_OF = {
    "BlockDevice": "vdisk.block.device",
    "Extent": "vdisk.block.extent",
    "Kind": "vdisk.block.extent",
    "Overlay": "vdisk.block.overlay",
    "ReadOnly": "vdisk.block.filters",
    "Window": "vdisk.block.filters",
    "convert": "vdisk.converter",
    "boot": "vdisk.serve.engines",
    "create": "vdisk.formats",
    "open": "vdisk.formats",
    "probe": "vdisk.formats",
    **dict.fromkeys(
        (
            "Corrupt",
            "HypervisorError",
            "ImageError",
            "InUse",
            "NotThisFormat",
            "OptionError",
            "PolicyError",
            "StorageError",
            "Unsupported",
            "VdiskError",
        ),
        "vdisk.errors",
    ),
}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'vdisk' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
