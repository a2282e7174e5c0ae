"""VHD: Microsoft Virtual Hard Disk Image Format Specification 1.0."""

_COOKIE = b"conectix"


def probe(head: bytes, tail: bytes, size: int) -> bool:
    """The footer's cookie, in front (dynamic and differencing) or at the tail (all; 511 bytes long in old files)."""
    return head.startswith(_COOKIE) or tail[-512:-504] == _COOKIE or tail[-511:-503] == _COOKIE
