"""LUKS written here opens in qemu and the other way; the old AES is read; a wrong secret says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import vdisk
from tests.conformance.image import lay_out
from tests.formats.qcow2.test_matrix import SIZE, scribble, some_content
from tests.peers import missing, qemu_img, run
from vdisk import formats
from vdisk.errors import OptionError, Unsupported

pytest.importorskip("cryptography")
SECRET = b"open sesame"


def raw_by_qemu(path: Path, raw: Path) -> bytes:
    """What qemu-img reads of an encrypted image."""
    qemu_img("convert", "--object", f"secret,id=s,data={SECRET.decode()}", "--image-opts", "-O", "raw",
             f"driver=qcow2,file.filename={path},encrypt.key-secret=s", raw)  # fmt: skip
    return raw.read_bytes()


def made_by_qemu(path: Path, how: str, more: str = "") -> None:
    """An encrypted image of qemu's; it measures the processor's speed first, and at times fails to."""
    for _ in range(30):
        done = run("qemu-img", "create", "-q", "-f", "qcow2", "--object", f"secret,id=s,data={SECRET.decode()}", "-o",
                   f"encrypt.format={how},encrypt.key-secret=s{more}", path, SIZE, check=False)  # fmt: skip
        if done.returncode == 0:
            return
        assert b"Unable to get accurate CPU usage" in done.stderr
    missing("qemu-img could not time its key derivation")


def patterns_by_qemu(path: Path, *commands: str) -> None:
    arguments = [argument for command in commands for argument in ("-c", command)]
    said = run("qemu-io", "--object", f"secret,id=s,data={SECRET.decode()}", *arguments, "--image-opts",
               f"driver=qcow2,file.filename={path},encrypt.key-secret=s")  # fmt: skip
    assert b"failed" not in said.stdout


@pytest.mark.peer
@pytest.mark.parametrize("more", [{}, {"extended_l2": "on"}, {"encrypt.hash-alg": "sha1", "cluster_size": "4K"}])
def test_luks_of_ours_opens_in_qemu(more: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISK_SECRET", SECRET.decode())
    path, raw = tmp_path / "a.qcow2", tmp_path / "a.raw"
    content = some_content(30)
    options = {"encrypt.format": "luks", "encrypt.secret": "env:DISK_SECRET", "encrypt.iterations": "2000", **more}
    lay_out(path, "qcow2", options, bytes(content))
    assert raw_by_qemu(path, raw) == content
    assert b"text 3 text 3" in content
    assert b"text 3 text 3" not in path.read_bytes()
    with formats.open(path, writable=True, secret=SECRET) as disk:
        assert disk.read(0, SIZE) == content
        scribble(disk, content, 31)
        assert disk.read(0, SIZE) == content
        assert disk.check().findings == []
    assert raw_by_qemu(path, raw) == content
    qemu_img("check", "--object", f"secret,id=s,data={SECRET.decode()}", "--image-opts",
             f"driver=qcow2,file.filename={path},encrypt.key-secret=s")  # fmt: skip


@pytest.mark.peer
def test_a_conversion_to_luks_writes_the_zeros_between_too(tmp_path: Path) -> None:
    """A hole in the file would read as noise, not as zeros."""
    raw, path, again = tmp_path / "a.raw", tmp_path / "a.qcow2", tmp_path / "again.raw"
    content = bytearray(1 << 20)
    content[70_000:70_001] = b"x"
    content[-1:] = b"y"
    raw.write_bytes(content)
    (tmp_path / "secret").write_bytes(SECRET + b"\n")
    options = {"encrypt.format": "luks", "encrypt.secret": f"file:{tmp_path / 'secret'}", "encrypt.iterations": "2000"}
    vdisk.convert(raw, path, options=options)
    with formats.open(path, secret=SECRET) as disk:
        assert disk.read(0, disk.size) == content
    assert raw_by_qemu(path, again) == content


@pytest.mark.peer
def test_luks_of_qemus_is_read_and_written(tmp_path: Path) -> None:
    path, raw = tmp_path / "a.qcow2", tmp_path / "a.raw"
    made_by_qemu(path, "luks", ",encrypt.iter-time=100")
    patterns_by_qemu(path, "write -P 7 100k 300k", "write -P 8 3M 1k")
    content = bytearray(SIZE)
    content[100 << 10 : 400 << 10] = b"\x07" * (300 << 10)
    content[3 << 20 : (3 << 20) + 1024] = b"\x08" * 1024
    with formats.open(path, writable=True, secret=SECRET) as disk:
        assert disk.read(0, SIZE) == content
        scribble(disk, content, 33)
    assert raw_by_qemu(path, raw) == content
    with formats.open(path) as disk:
        said = disk.describe()
        assert said.is_encrypted
        assert said.specific["encrypt"]["cipher-alg"] == "aes-256"
        with pytest.raises(OptionError, match="without its secret"):
            disk.read(100 << 10, 1)
    with pytest.raises(OptionError, match="opens none of its key slots"):
        formats.open(path, secret=b"wrong")


@pytest.mark.peer
def test_the_old_aes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    made_by_qemu(path, "aes")
    shutil.copy(path, tmp_path / "empty.qcow2")
    # qemu-img writes under the old AES, although qemu's machines refuse it.
    patterns_by_qemu(path, "write -P 9 64k 200k")
    with formats.open(path, secret=SECRET) as disk:
        assert disk.read(0, 64 << 10) == bytes(64 << 10)
        assert disk.read(64 << 10, 200 << 10) == b"\x09" * (200 << 10)
    with pytest.raises(Unsupported, match="AES"):
        formats.open(path, secret=SECRET, writable=True)


def test_a_secret_comes_from_a_file_or_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vdisk.formats.qcow2.encryption import secret_from

    (tmp_path / "s").write_bytes(b"two words\n")
    assert secret_from(f"file:{tmp_path / 's'}") == b"two words"
    monkeypatch.setenv("THE_SECRET", "x")
    assert secret_from("env:THE_SECRET") == b"x"
    with pytest.raises(OptionError, match="never given itself"):
        secret_from("hunter2")
    with pytest.raises(OptionError, match="no variable"):
        secret_from("env:NO_SUCH_THING")
