"""What a meter keeps of a guest's reads, and how it is told."""

from tests.hv.guests import disk_of
from vdisk.hv.meter import Meter, describe_last_reads


def read_all(meter, *ranges):
    for start, end in ranges:
        meter.read(start, end - start)


def name_of(_device, offset):
    return "the boot sector" if offset < 512 else "partition 1" if offset < 4096 else None


def test_reads_that_follow_on_are_one():
    meter = Meter(disk_of(b""))
    read_all(meter, (0, 512), (512, 1024), (1024, 2048), (8192, 8704))
    assert list(meter.last_reads) == [(0, 2048), (8192, 8704)]


def test_only_the_last_ones_are_kept():
    meter = Meter(disk_of(b""))
    read_all(meter, *((number * 4096, number * 4096 + 512) for number in range(100)))
    assert len(meter.last_reads) <= 16
    assert meter.last_reads[-1] == (99 * 4096, 99 * 4096 + 512)


def test_places_are_told_in_the_order_of_the_reads():
    meter = Meter(disk_of(b""))
    read_all(meter, (0, 512), (1024, 2048), (512, 1024), (0, 512))
    told = describe_last_reads([meter], name_of)
    assert told == (
        "the last reads fell in the boot sector, then in partition 1, then in the boot sector, and ended at byte 512"
    )


def test_without_a_name_the_place_is_told():
    meter = Meter(disk_of(b""))
    read_all(meter, (8192, 8704))
    assert describe_last_reads([meter], name_of) == "the last reads ended at byte 8704"
    assert describe_last_reads([meter], None) == "the last reads ended at byte 8704"


def test_a_disk_that_was_not_read_is_told_apart():
    read, unread = Meter(disk_of(b"")), Meter(disk_of(b""))
    read_all(read, (0, 512))
    assert describe_last_reads([unread], name_of) == "nothing was read from it"
    assert describe_last_reads([], name_of) == ""
    assert describe_last_reads([read, unread], name_of) == (
        "disk 1: the last reads fell in the boot sector, and ended at byte 512; disk 2: nothing was read from it"
    )


def test_a_name_is_looked_up_without_counting_as_a_read():
    meter = Meter(disk_of(b""))
    read_all(meter, (0, 512))
    describe_last_reads([meter], lambda device, offset: str(device.read(offset, 1)))
    assert meter.reads == 1
