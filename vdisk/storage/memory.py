"""`MemoryStorage`: a storage in a bytearray, for tests and small scratch data."""

from __future__ import annotations

from vdisk.errors import StorageError
from vdisk.storage.base import Buffer, Storage


class MemoryStorage(Storage):
    """Bytes in memory, growing as they are written."""

    def __init__(self, data: Buffer = b"", name: str = "<memory>", *, writable: bool = True) -> None:
        self.data = bytearray(data)
        self.name = name
        self.writable = writable

    @property
    def size(self) -> int:
        return len(self.data)

    def readinto(self, offset: int, buffer: memoryview) -> int:
        part = memoryview(self.data)[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)

    def write(self, offset: int, data: Buffer) -> None:
        if not self.writable:
            raise StorageError(self.name, "write", "opened read-only")
        end = offset + len(data)
        if end > len(self.data):
            self.data.extend(bytes(end - len(self.data)))
        self.data[offset:end] = data

    def truncate(self, size: int) -> None:
        if size < len(self.data):
            del self.data[size:]
        else:
            self.data.extend(bytes(size - len(self.data)))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass
