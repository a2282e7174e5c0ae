"""qcow2, versions 2 and 3: QEMU docs/interop/qcow2."""


def probe(head: bytes, tail: bytes, size: int) -> bool:
    """The magic, with a version that is qcow2's (version 1 is another format)."""
    return head[:4] == b"QFI\xfb" and int.from_bytes(head[4:8], "big") >= 2
