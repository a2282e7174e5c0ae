"""What VirtualBox may write and few read right: prefixes, slots in any order, zero against free, old headers."""

from __future__ import annotations

import random
import uuid
from pathlib import Path

import pytest

from tests.conformance.image import check_map
from tests.formats.vdi.handmade import FREE, ZERO, vdi
from vdisk import formats
from vdisk.errors import Corrupt, StorageError, Unsupported
from vdisk.formats.vdi.image import VdiImage

BLOCK = 8192
BLOCKS = [bytes([65 + number]) * BLOCK for number in range(4)]


def read_all(path: Path) -> bytes:
    with formats.open(path) as disk:
        content = disk.read(0, disk.size)
        check_map(disk, content)
        return content


@pytest.mark.parametrize("extra", [b"", b"prefix of a block".ljust(512, b"!")])
def test_slots_in_any_order_with_and_without_prefixes(tmp_path: Path, extra: bytes) -> None:
    path = tmp_path / "a.vdi"
    slots = {0: BLOCKS[0], 1: BLOCKS[1], 2: BLOCKS[2], 3: BLOCKS[3]}
    size = 6 * BLOCK - 512
    path.write_bytes(vdi([2, 3, FREE, 0, ZERO, 1], slots, disk_bytes=size, block_bytes=BLOCK, extra=extra))
    wanted = bytearray(BLOCKS[2] + BLOCKS[3] + bytes(BLOCK) + BLOCKS[0] + bytes(BLOCK) + BLOCKS[1])[:size]
    assert read_all(path) == wanted
    with formats.open(path, writable=True) as disk:
        maker = random.Random(1)
        for _ in range(40):
            offset = maker.randrange(size)
            data = maker.randbytes(min(maker.randrange(1, 3 * BLOCK), size - offset))
            disk.write(offset, data)
            wanted[offset : offset + len(data)] = data
            assert disk.read(0, size) == wanted
    assert read_all(path) == wanted
    with formats.open(path) as disk:
        assert disk.check().findings == []
        assert isinstance(disk, VdiImage)
        assert disk.header.allocated_count == 6
    raw = path.read_bytes()
    stride = BLOCK + len(extra)
    for slot in range(4):  # prefixes are not ours to change
        assert raw[1024 + slot * stride :][: len(extra)] == extra


def test_uuids_are_stored_with_their_first_fields_swapped(tmp_path: Path) -> None:
    own = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
    raw = vdi([FREE], {}, disk_bytes=BLOCK, block_bytes=BLOCK, own=own)
    assert raw[392:408].hex() == "33221100554477668899aabbccddeeff"
    (tmp_path / "a.vdi").write_bytes(raw)
    with formats.open(tmp_path / "a.vdi") as disk:
        assert disk.describe().specific["uuid"] == str(own)
        assert disk.describe().specific["description"] == "hand-made"


@pytest.mark.parametrize("header_bytes", [384, 400])
def test_what_stands_around_our_fields_stays(tmp_path: Path, header_bytes: int) -> None:
    """The text, the description and the logical geometry behind the UUIDs."""
    path = tmp_path / "a.vdi"
    before = vdi([FREE] * 3, {}, disk_bytes=3 * BLOCK, block_bytes=BLOCK, header_bytes=header_bytes)
    path.write_bytes(before)
    with formats.open(path, writable=True) as disk:
        disk.write(0, b"x")
        disk.resize(2 * BLOCK, shrink=True)
    after = path.read_bytes()
    assert after[:340] == before[:340]
    assert after[456:512] == before[456:512]
    assert after[392:408] == before[392:408], "its own UUID"
    assert after[408:424] != before[408:424], "the UUID of its modification"


def test_an_entry_behind_the_file_is_an_error_where_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.vdi"
    path.write_bytes(vdi([0, 7], {0: BLOCKS[0]}, disk_bytes=2 * BLOCK, block_bytes=BLOCK))
    with formats.open(path) as disk:
        assert disk.read(0, BLOCK) == BLOCKS[0]
        with pytest.raises(Corrupt, match=r"a\.vdi: block map entry 1: .* found 7"):
            disk.read(0, 2 * BLOCK)


def test_other_versions_are_refused_by_name(tmp_path: Path) -> None:
    raw = bytearray(vdi([FREE], {}, disk_bytes=BLOCK, block_bytes=BLOCK))
    raw[68:72] = (1).to_bytes(4, "little")
    (tmp_path / "a.vdi").write_bytes(raw)
    with pytest.raises(Unsupported, match=r"vdi: version 0\.1"):
        formats.open(tmp_path / "a.vdi")


@pytest.mark.parametrize("image_type", [3, 4])
def test_zero_hides_the_parent_and_free_shows_it(tmp_path: Path, image_type: int) -> None:
    base, modified = uuid.uuid4(), uuid.uuid4()
    (tmp_path / "base.vdi").write_bytes(
        vdi(
            [0, 1, 2],
            {0: BLOCKS[0], 1: BLOCKS[1], 2: BLOCKS[2]},
            disk_bytes=3 * BLOCK,
            block_bytes=BLOCK,
            own=base,
            modification=modified,
        )
    )
    (tmp_path / "{snapshot}.VDI").write_bytes(
        vdi(
            [ZERO, FREE, 0, FREE],
            {0: BLOCKS[3]},
            disk_bytes=4 * BLOCK,
            block_bytes=BLOCK,
            image_type=image_type,
            parent=base,
            parent_modification=modified,
        )
    )
    assert read_all(tmp_path / "{snapshot}.VDI") == bytes(BLOCK) + BLOCKS[1] + BLOCKS[3] + bytes(BLOCK)


def test_a_child_of_nobody_is_not_half_read(tmp_path: Path) -> None:
    """qemu-img opens a type 4 with null UUIDs as if it were whole."""
    (tmp_path / "a.vdi").write_bytes(vdi([FREE], {}, disk_bytes=BLOCK, block_bytes=BLOCK, image_type=4))
    with pytest.raises(Corrupt, match="names no parent"):
        formats.open(tmp_path / "a.vdi")
    other = vdi([FREE], {}, disk_bytes=BLOCK, block_bytes=BLOCK, image_type=4, parent=uuid.uuid4())
    (tmp_path / "a.vdi").write_bytes(other)
    with pytest.raises(StorageError, match=r"parent UUID .*no \.vdi file beside the image has it"):
        formats.open(tmp_path / "a.vdi")
    formats.open(tmp_path / "a.vdi", backing=False).close()
