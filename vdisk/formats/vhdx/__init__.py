"""VHDX: Hyper-V's virtual hard disk, as [MS-VHDX] describes it."""


def probe(head: bytes, tail: bytes, size: int) -> bool:
    """The file type identifier (2.2.1)."""
    return head.startswith(b"vhdxfile")
