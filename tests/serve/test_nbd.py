"""The NBD server, judged by qemu-io, nbdinfo and a client that misbehaves."""

import json
import socket
import struct
import subprocess

import pytest

from tests import peers
from tests.hv.devices.device_rig import RamDisk
from vdisk.serve.nbd import NbdServer


@pytest.mark.peer
def test_qemu_io_reads_writes_and_zeroes():
    disk = RamDisk(8 << 20).fill()
    with NbdServer(disk) as server:
        uri = f"nbd+unix:///?socket={server.path}"
        commands = ["read -v 512 16", "write -P 0xab 1M 64k", "write -z 2M 64k", "discard 3M 64k", "flush"]
        arguments = [peers.require("qemu-io"), "-f", "raw", uri]
        for command in commands:
            arguments += ["-c", command]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "01 00 00 00" in done.stdout
    assert bytes(disk.data[1 << 20 : (1 << 20) + 65536]) == b"\xab" * 65536
    assert bytes(disk.data[2 << 20 : (2 << 20) + 65536]) == bytes(65536)
    assert disk.discards
    assert disk.flushes


@pytest.mark.peer
@pytest.mark.parametrize("writable", [True, False])
def test_nbdinfo_sees_the_size_and_what_is_allowed(writable):
    with NbdServer(RamDisk(3 << 20, writable=writable)) as server:
        done = subprocess.run(
            [peers.require("nbdinfo"), "--json", f"nbd+unix:///?socket={server.path}"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    export = json.loads(done.stdout)["exports"][0]
    assert export["export-size"] == 3 << 20
    assert export["is_read_only"] is not writable


class Client:
    """A handshake by hand, and then whatever a test sends."""

    def __init__(self, server):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(server.path))
        self.receive(18)
        self.socket.sendall(struct.pack(">I", 3))
        self.socket.sendall(struct.pack(">QIIIH", 0x49484156454F5054, 7, 6, 0, 0))
        self.receive(20 + 12 + 20)

    def receive(self, length):
        data = b""
        while len(data) < length:
            part = self.socket.recv(length - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def request(self, command, offset, length, payload=b""):
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, command, 77, offset, length) + payload)
        magic, error, cookie = struct.unpack(">IIQ", self.receive(16))
        assert (magic, cookie) == (0x67446698, 77)
        return error


def test_requests_past_the_end_and_unknown_ones_are_errors_and_the_connection_lives():
    disk = RamDisk(1 << 20).fill()
    with NbdServer(disk) as server:
        client = Client(server)
        assert client.request(0, (1 << 20) - 512, 1024) == 22
        assert client.request(1, 1 << 20, 4, b"late") == 28
        assert client.request(99, 0, 512) == 22
        disk.fails = True
        assert client.request(0, 0, 512) == 5
        disk.fails = False
        assert client.request(0, 512, 4) == 0
        assert client.receive(4) == b"\1\0\0\0"
        client.socket.close()


def test_a_request_larger_than_allowed_ends_the_connection():
    with NbdServer(RamDisk(1 << 20)) as server:
        client = Client(server)
        with pytest.raises(EOFError):
            client.request(0, 0, 1 << 31)
        client.socket.close()


def test_closing_removes_the_socket_and_drops_clients():
    server = NbdServer(RamDisk(1 << 20))
    client = Client(server)
    server.close()
    assert not server.path.exists()
    with pytest.raises((EOFError, OSError)):
        client.request(0, 0, 512)
    client.socket.close()
