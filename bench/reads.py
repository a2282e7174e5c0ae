"""`python -m bench.reads`: reading through the library, beside dissect.hypervisor and the bindings of libyal.

The peers live in a virtual environment of their own (made in the cache), for some of their licences are not ours; each
cell is a process of its own that opens an image, warms it up and reads: 4 KiB at random, 1 MiB in sequence. Rates are
by processor time, so that neighbours on the machine do not decide.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path

from bench import corpus

PEERS = ("dissect.hypervisor", "libqcow-python", "libvmdk-python", "libvhdi-python")
_VARIANTS = ("raw", "qcow2", "vmdk", "vdi", "vhd", "vhdx")

_READER = """
import random, sys, time
who, kind, path = sys.argv[1:]
if who == "vdisk":
    import vdisk
    disk = vdisk.open(path)
    size = disk.size
    def read(offset, length): return disk.read(offset, length)
elif who == "libyal":
    name = {"qcow2": "pyqcow", "vmdk": "pyvmdk", "vhd": "pyvhdi", "vhdx": "pyvhdi"}[kind]
    module = __import__(name)
    if name == "pyvmdk":
        disk = module.handle(); disk.open(path); disk.open_extent_data_files()
    else:
        disk = module.file(); disk.open(path)
    size = disk.get_media_size()
    def read(offset, length): return disk.read_buffer_at_offset(length, offset)
else:
    file = open(path, "rb")
    if kind == "qcow2":
        from dissect.hypervisor.disk.qcow2 import QCow2
        disk = QCow2(file)
        disk = disk.open() if hasattr(disk, "open") else disk
    elif kind == "vmdk":
        from dissect.hypervisor.disk.vmdk import VMDK
        disk = VMDK(file)
    elif kind == "vdi":
        from dissect.hypervisor.disk.vdi import VDI
        disk = VDI(file)
        disk = disk.open() if hasattr(disk, "open") else disk
    elif kind == "vhd":
        from dissect.hypervisor.disk.vhd import VHD
        disk = VHD(file)
    else:
        from dissect.hypervisor.disk.vhdx import VHDX
        disk = VHDX(file)
    size = getattr(disk, "size", None) or 4 << 30
    def read(offset, length):
        disk.seek(offset); return disk.read(length)
maker = random.Random(1)
places = [maker.randrange(0, (600 << 20) // 4096) * 4096 for _ in range(20000)]
for place in places[:2000]: read(place, 4096)
start = time.process_time()
count = 0
while time.process_time() - start < 0.5:
    for place in places[count % 18000 : count % 18000 + 500]: read(place, 4096)
    count += 500
small = count / (time.process_time() - start)
start = time.process_time()
done = 0
while time.process_time() - start < 0.5:
    for step in range(20):
        read((done + step) % 600 << 20, 1 << 20)
    done += 20
large = done / (time.process_time() - start)
print(small, large)
"""


def peers_python() -> Path:
    """The interpreter of the peers' environment, which is made when it is missing."""
    folder = corpus.CACHE / "peers"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PEERS], check=True)
    return python


def rate(python: Path | str, who: str, variant: str, path: Path) -> tuple[float, float] | None:
    """(4 KiB random reads, 1 MiB sequential reads) a second; None when the reader does not manage the image."""
    command = [str(python), "-c", _READER, who, variant, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        return None
    small, large = done.stdout.split()
    return float(small), float(large)


def main() -> None:
    """Measure every cell, in turn, and print the table."""
    parser = argparse.ArgumentParser(prog="bench.reads", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    theirs = peers_python()
    readers = (("vdisk", sys.executable), ("dissect", theirs), ("libyal", theirs))
    results = []
    print(f"{'':<8}" + "".join(f"{who + ' 4K/s':>15}{'MiB/s':>8}" for who, _ in readers))
    for variant in _VARIANTS:
        path = corpus.image("debian", variant)
        cells: dict[str, list[tuple[float, float]]] = {}
        for _ in range(given.runs):
            for who, python in readers:
                if (who == "libyal" and variant in ("raw", "vdi")) or (who == "dissect" and variant == "raw"):
                    continue
                found = rate(python, who, variant, path)
                if found is not None:
                    cells.setdefault(who, []).append(found)
        line = f"{variant:<8}"
        for who, _ in readers:
            if who in cells:
                small = statistics.median(cell[0] for cell in cells[who])
                large = statistics.median(cell[1] for cell in cells[who])
                results.append({"format": variant, "reader": who, "random_4k": round(small), "mib": round(large)})
                line += f"{small:>15,.0f}{large:>8,.0f}"
            else:
                line += f"{'-':>15}{'-':>8}"
        print(line, flush=True)
    folder = Path(__file__).resolve().parent / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"reads-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
