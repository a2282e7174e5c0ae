"""VDI: VirtualBox's disk image, version 1.1."""


def probe(head: bytes, tail: bytes, size: int) -> bool:
    """The signature behind the text that opens the file."""
    return head[64:68] == b"\x7f\x10\xda\xbe"
