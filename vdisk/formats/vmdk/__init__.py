"""VMDK: VMware Virtual Disk Format 5.0."""

_MAGICS = (b"KDMV", b"COWD", b"\xbe\xba\xfe\xca\x00\x00\x00\x00")
_DESCRIPTOR_MARK = b"# disk descriptorfile"


def probe(head: bytes, tail: bytes, size: int) -> bool:
    """A sparse extent's magic (hosted, COWD, seSparse), or a descriptor: comments, then its opening line."""
    if head.startswith(_MAGICS[:2]) or head[:8] == _MAGICS[2]:
        return True
    for line in head.lstrip(b"\xef\xbb\xbf").splitlines()[:64]:
        line = line.strip().lower()
        if line.startswith(_DESCRIPTOR_MARK):
            return True
        if line and not line.startswith(b"#"):
            return line.startswith(b"version=")
    return False
