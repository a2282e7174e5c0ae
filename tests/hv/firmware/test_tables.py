"""The tables that a system reads: sums are zero, lengths fit, and another program can read the DSDT."""

import itertools
import struct
import subprocess
from uuid import UUID

import pytest

from tests import peers
from vdisk.hv import layout
from vdisk.hv.firmware import acpi, aml
from vdisk.hv.firmware.e820 import RAM, memory_map
from vdisk.hv.firmware.mptable import build_mptable
from vdisk.hv.firmware.smbios import build_smbios
from vdisk.hv.memory import GuestMemory

MACHINE = acpi.AcpiMachine(2, lambda slot, pin: (10, 11)[slot + pin & 1], (10, 11), ((0x3F8, 4),))


def tables_in(blob, base, root):
    """The tables that a root table at `root` points to, by signature."""
    length = struct.unpack_from("<I", blob, root - base + 4)[0]
    for at in range(root - base + 36, root - base + length, 4):
        where = struct.unpack_from("<I", blob, at)[0] - base
        size = struct.unpack_from("<I", blob, where + 4)[0]
        yield blob[where : where + 4], blob[where : where + size]


def test_every_acpi_table_sums_to_zero():
    base = 0x7FF0000
    tables = acpi.build_tables(base, 0x7FEF000, MACHINE)
    found = dict(tables_in(tables.tables, base, tables.rsdt_at))
    assert set(found) == {b"FACP", b"APIC"}
    assert all(sum(table) & 0xFF == 0 for table in found.values())
    dsdt_at = struct.unpack_from("<I", found[b"FACP"], 40)[0] - base
    dsdt = tables.tables[dsdt_at : dsdt_at + struct.unpack_from("<I", tables.tables, dsdt_at + 4)[0]]
    assert dsdt[:4] == b"DSDT"
    assert sum(dsdt) & 0xFF == 0
    assert len(tables.facs) == 64
    rsdp = acpi.build_rsdp(tables.rsdt_at, tables.xsdt_at)
    assert (sum(rsdp[:20]) & 0xFF, sum(rsdp) & 0xFF, len(rsdp)) == (0, 0, 36)


def test_the_madt_lists_the_processors():
    madt = acpi.build_madt(MACHINE)
    kinds = []
    at = 44
    while at < len(madt):
        kinds.append(madt[at])
        at += madt[at + 1]
    assert kinds.count(0) == 2
    assert kinds.count(1) == 1


@pytest.mark.peer
def test_iasl_reads_the_dsdt_and_finds_nothing_to_complain_of(tmp_path):
    iasl = peers.require("iasl")
    (tmp_path / "dsdt.aml").write_bytes(acpi.build_dsdt(MACHINE))
    done = subprocess.run([iasl, "-d", "dsdt.aml"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    source = (tmp_path / "dsdt.dsl").read_text()
    assert done.returncode == 0
    assert 'EisaId ("PNP0A03")' in source
    assert "Name (_PRT" in source
    done = subprocess.run([iasl, "-p", "again", "dsdt.dsl"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "0 Errors" in done.stdout


@pytest.mark.parametrize(("value", "code"), [(0, "00"), (1, "01"), (0x7F, "0a7f"), (0x1234, "0b3412")])
def test_integers_take_their_shortest_form(value, code):
    assert aml.integer(value) == bytes.fromhex(code)


@pytest.mark.parametrize("length", [1, 57, 58, 59, 60, 300, 4084, 4090, 70000])
def test_package_lengths_count_themselves(length):
    body = aml.scope("\\", b"x" * length)
    lead = body[1]
    follow = lead >> 6
    told = lead & 15 | int.from_bytes(body[2 : 2 + follow], "little") << 4 if follow else lead
    assert told == len(body) - 1


def test_smbios_is_found_and_sums_to_zero():
    table = build_smbios(
        0xF1000,
        manufacturer="Somebody",
        product="Something",
        version="",
        bios=("vdisk", "1"),
        uuid=UUID(int=1),
        cpus=2,
        memory_bytes=1 << 30,
    )
    assert table[:4] == b"_SM_"
    assert sum(table[:31]) & 0xFF == 0
    assert sum(table[16:31]) & 0xFF == 0
    length, at, count = struct.unpack_from("<HIH", table, 22)
    assert at == 0xF1020
    assert len(table) == 32 + length
    structures = table[32:]
    kinds = []
    while structures:
        kinds.append(structures[0])
        end = structures.index(b"\0\0", structures[1]) + 2
        structures = structures[end:]
    assert len(kinds) == count
    assert kinds.count(4) == 2
    assert kinds[-1] == 127


def test_the_mp_table_sums_to_zero():
    table = build_mptable(0xF2000, 4, {4: (10, 11, 10, 11)})
    assert sum(table[:16]) & 0xFF == 0
    assert sum(table[16:]) & 0xFF == 0
    assert struct.unpack_from("<H", table, 16 + 34)[0] == sum(1 for _ in range(4 + 2 + 1 + 13 + 4 + 2))


@pytest.mark.parametrize("size", [4 << 20, 512 << 20, 5 << 30])
def test_the_memory_map_covers_ram_without_overlap(size):
    memory = GuestMemory(size)
    entries = memory_map(memory)
    for before, after in itertools.pairwise(entries):
        assert before.base + before.length <= after.base
    ram = sum(entry.length for entry in entries if entry.kind == RAM)
    assert size - ram <= (1 << 20) - layout.EBDA + layout.ACPI_TABLES_BYTES + layout.ACPI_NVS_BYTES
    memory.close()
