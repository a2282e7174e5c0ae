"""Parallels: expandable images (.hds) and the bundles (.hdd) that DiskDescriptor.xml holds together."""

_MAGICS = (b"WithoutFreeSpace", b"WithouFreSpacExt")
_ROOT_ELEMENT = b"<Parallels_disk_image"


def probe(head: bytes, tail: bytes, size: int) -> bool:
    """An expandable image's magic, or the root element of a bundle's descriptor."""
    if head[:16] in _MAGICS:
        return True
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") and _ROOT_ELEMENT in head
