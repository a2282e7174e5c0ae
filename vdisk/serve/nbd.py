"""A disk as a network block device on a Unix socket (NBD protocol, doc/proto.md of NetworkBlockDevice/nbd).

Fixed newstyle handshake, one export, simple replies; read, write, flush, trim, write zeroes. Each connection has a
thread. The socket lies in a folder of its own that only this user may enter.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import socket
import struct
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from vdisk.block.device import BlockDevice
from vdisk.errors import StorageError, VdiskError

_MAGIC, _OPTION_MAGIC, _REPLY_MAGIC = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
_REQUEST_MAGIC, _SIMPLE_REPLY_MAGIC = 0x25609513, 0x67446698
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPT_EXPORT_NAME, _OPT_ABORT, _OPT_LIST, _OPT_INFO, _OPT_GO = 1, 2, 3, 6, 7
_REP_ACK, _REP_SERVER, _REP_INFO = 1, 2, 3
_REP_UNSUPPORTED, _REP_INVALID = 0x80000001, 0x80000003
_INFO_EXPORT = 0
_HAS_FLAGS, _READ_ONLY, _SEND_FLUSH, _SEND_FUA, _SEND_TRIM, _SEND_WRITE_ZEROES, _MULTI_CONN = 1, 2, 4, 8, 32, 64, 256
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _WRITE_ZEROES = 0, 1, 2, 3, 4, 6
_FLAG_FUA, _FLAG_NO_HOLE = 1, 2
_LARGEST_OPTION_BYTES = 1 << 16
_LARGEST_REQUEST_BYTES = 32 << 20
_REQUEST = struct.Struct(">IHHQQI")


class _Gone(Exception):
    """The client has left."""


def _receive(connection: socket.socket, length: int) -> bytearray:
    buffer = bytearray(length)
    view = memoryview(buffer)
    while view:
        count = connection.recv_into(view)
        if not count:
            raise _Gone
        view = view[count:]
    return buffer


class NbdServer:
    """Serves `device` until closed; `path` is the socket. The device stays the caller's."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._folder = Path(tempfile.mkdtemp(prefix="vdisk-nbd-"))
        self.path = self._folder / "socket"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._is_closing = False
        try:
            self._listener.bind(str(self.path))
            self._listener.listen()
        except OSError as error:
            self._listener.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise StorageError(self.path, "listen", error) from error
        self._thread = threading.Thread(target=self._accept, name="nbd", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop every connection and remove the socket."""
        self._is_closing = True
        # A thread in accept() does not notice a close: shut down first.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _accept(self) -> None:
        workers = []
        while not self._is_closing:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                break
            with self._lock:
                self._connections.add(connection)
            worker = threading.Thread(target=self._serve, args=(connection,), name="nbd client", daemon=True)
            worker.start()
            workers.append(worker)
        for worker in workers:
            worker.join()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self._shake_hands(connection):
                while self._answer(connection):
                    pass
        except (_Gone, OSError):
            pass
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    # Handshake -------------------------------------------------------------------------------------------------

    @property
    def _flags(self) -> int:
        flags = _HAS_FLAGS | _SEND_FLUSH | _SEND_FUA | _MULTI_CONN
        return flags | (_SEND_TRIM | _SEND_WRITE_ZEROES if self._device.writable else _READ_ONLY)

    def _shake_hands(self, connection: socket.socket) -> bool:
        connection.sendall(struct.pack(">QQH", _MAGIC, _OPTION_MAGIC, _FIXED_NEWSTYLE | _NO_ZEROES))
        (client_flags,) = struct.unpack(">I", _receive(connection, 4))
        while True:
            magic, option, length = struct.unpack(">QII", _receive(connection, 16))
            if magic != _OPTION_MAGIC or length > _LARGEST_OPTION_BYTES:
                return False
            data = bytes(_receive(connection, length))
            if option == _OPT_EXPORT_NAME:
                zeroes = b"" if client_flags & _NO_ZEROES else bytes(124)
                connection.sendall(struct.pack(">QH", self._device.size, self._flags) + zeroes)
                return True
            if option in (_OPT_GO, _OPT_INFO):
                if length < 6 or struct.unpack_from(">I", data)[0] > length - 6:
                    self._reply(connection, option, _REP_INVALID)
                    continue
                self._reply(
                    connection, option, _REP_INFO, struct.pack(">HQH", _INFO_EXPORT, self._device.size, self._flags)
                )
                self._reply(connection, option, _REP_ACK)
                if option == _OPT_GO:
                    return True
            elif option == _OPT_LIST:
                self._reply(connection, option, _REP_SERVER, struct.pack(">I", 0))
                self._reply(connection, option, _REP_ACK)
            elif option == _OPT_ABORT:
                self._reply(connection, option, _REP_ACK)
                return False
            else:
                self._reply(connection, option, _REP_UNSUPPORTED)

    @staticmethod
    def _reply(connection: socket.socket, option: int, kind: int, data: bytes = b"") -> None:
        connection.sendall(struct.pack(">QIII", _REPLY_MAGIC, option, kind, len(data)) + data)

    # Requests --------------------------------------------------------------------------------------------------

    def _answer(self, connection: socket.socket) -> bool:
        magic, flags, command, cookie, offset, length = _REQUEST.unpack(_receive(connection, _REQUEST.size))
        if magic != _REQUEST_MAGIC or command == _DISCONNECT:
            return False
        if command in (_READ, _WRITE) and length > _LARGEST_REQUEST_BYTES:
            return False  # the payload cannot be skipped safely
        payload = _receive(connection, length) if command == _WRITE else None
        answer = bytearray(length if command == _READ else 0)
        try:
            failure = self._do(command, flags, offset, length, payload, answer)
        except VdiskError:
            failure = errno.EIO
        connection.sendall(struct.pack(">IIQ", _SIMPLE_REPLY_MAGIC, failure, cookie))
        if command == _READ and not failure:
            connection.sendall(answer)
        return True

    def _do(
        self, command: int, flags: int, offset: int, length: int, payload: bytearray | None, answer: bytearray
    ) -> int:
        """Carry out one request; answers an error number of the protocol, 0 for none."""
        device = self._device
        if command == _FLUSH:
            device.flush()
            return 0
        if offset + length > device.size:
            return errno.ENOSPC if command in (_WRITE, _WRITE_ZEROES) else errno.EINVAL
        if command == _READ:
            device.readinto(offset, answer)
            return 0
        if command not in (_WRITE, _TRIM, _WRITE_ZEROES):
            return errno.EINVAL
        if not device.writable:
            return errno.EPERM
        if payload is not None:
            device.write(offset, payload)
        elif command == _TRIM:
            device.discard(offset, length)
        else:
            device.write_zeroes(offset, length, unmap=not flags & _FLAG_NO_HOLE)
        if flags & _FLAG_FUA:
            device.flush()
        return 0
