"""`ParallelsImage`: what opens either kind, an expandable image or a bundle's descriptor."""

from __future__ import annotations

import abc
from typing import Self

from vdisk.errors import StorageError
from vdisk.formats.check import CheckReport, Repair
from vdisk.formats.image import Image, OpenRequest
from vdisk.formats.parallels import structs
from vdisk.storage.base import Storage


class ParallelsImage(Image):
    """Either kind. `open` looks at the file and gives an `HdsImage` or a `BundleImage`."""

    format_name = "parallels"

    @classmethod
    def open(cls, storage: Storage, request: OpenRequest) -> Self:
        from vdisk.formats.parallels.bundle import BundleImage
        from vdisk.formats.parallels.hds import HdsImage

        try:
            is_bundle = storage.read(0, len(structs.MAGIC_SECTORS)).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")
        except StorageError:
            storage.close()
            raise
        kind: type[ParallelsImage] = BundleImage if is_bundle else HdsImage
        image = kind.open_kind(storage, request)
        assert isinstance(image, cls)
        return image

    @classmethod
    @abc.abstractmethod
    def open_kind(cls, storage: Storage, request: OpenRequest) -> ParallelsImage:
        """Open this kind of image; `storage` is the image's from here on, on failure too."""

    def check(self, repair: Repair = Repair.NONE, *, dry_run: bool = False) -> CheckReport:
        from vdisk.formats.parallels.check import check

        with self.changing():
            return check(self, repair, dry_run=dry_run)

    def resize(self, size: int, *, shrink: bool = False) -> None:
        from vdisk.formats.parallels.resize import resize

        with self.changing():
            resize(self, size, shrink=shrink)
