"""`python -m bench.growth`: that cost follows the data and not the disk, and what looking at a large image costs.

Three tables: conversions of 1, 4 and 16 GiB of data (processor time and peak memory); of empty disks of 1 and 64 TiB;
and `info` and `map` of an image of 1 TiB whose every cluster is allocated, beside qemu-img in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import corpus
from bench.measure import Command, pair, run

_VDISK = Path(sys.executable).with_name("vdisk")
_MEMORY_BAR_BYTES = 200 << 20
_LOOKING_BAR_SECONDS = 0.15

_DATA_TARGETS: dict[str, list[str]] = {
    "qcow2": ["-O", "qcow2"],
    "qcow2, zlib": ["-c", "-O", "qcow2"],
    "streamOptimized": ["-O", "vmdk", "-o", "subformat=streamOptimized"],
    "vhdx": ["-O", "vhdx"],
}
_EMPTY_TARGETS: dict[str, list[str]] = {
    "qcow2": ["-O", "qcow2", "-o", "cluster_size=2M"],
    "vhdx": ["-O", "vhdx", "-o", "block_size=256M"],
    "vmdk": ["-O", "vmdk", "-o", "subformat=vmfs"],
    "raw": ["-O", "raw"],
}


def _data_disk(folder: Path, gib: int) -> Path:
    """A raw disk full of data that half compresses, all of its own."""
    path = folder / f"data-{gib}.raw"
    with path.open("wb") as made:
        for number in range(gib << 10):
            half = os.urandom(1 << 15)
            made.write(b"".join(half[at : at + 2048] * 2 for at in range(0, 1 << 15, 2048)) * 15)
            made.write(number.to_bytes(8, "big") * (1 << 13))
    return path


def _one(source: Path, target: Path, arguments: list[str]) -> dict[str, Any]:
    found = run([_VDISK, "convert", *arguments, source, target])
    target.unlink()
    for other in target.parent.glob("target-*"):
        other.unlink()
    return {
        "seconds": round(found.seconds, 2),
        "processor_seconds": round(found.processor_seconds, 2),
        "peak_mib": found.peak_bytes >> 20,
        "meets_bar": found.peak_bytes <= _MEMORY_BAR_BYTES,
    }


def _print(name: str, target: str, found: dict[str, Any]) -> None:
    print(
        f"{name:<18}{target:<17}{found['seconds']:>8.2f}{found['processor_seconds']:>8.2f}{found['peak_mib']:>6}"
        f"{'' if found['meets_bar'] else '  over 200 MiB'}",
        flush=True,
    )


def of_data(folder: Path, sizes_gib: tuple[int, ...]) -> list[dict[str, Any]]:
    """Conversions of disks that are full."""
    results = []
    for gib in sizes_gib:
        source = _data_disk(folder, gib)
        for target, arguments in _DATA_TARGETS.items():
            found = {"data_gib": gib, "target": target} | _one(source, folder / "target", arguments)
            results.append(found)
            _print(f"{gib} GiB of data", target, found)
        source.unlink()
    return results


def of_empty_disks(folder: Path) -> list[dict[str, Any]]:
    """Conversions of disks that hold nothing."""
    results = []
    for tib in (1, 64):
        source = folder / "empty.qcow2"
        run([_VDISK, "create", "-o", "cluster_size=2M", source, f"{tib}T"])
        for target, arguments in _EMPTY_TARGETS.items():
            if target == "raw" and tib > 15:
                continue  # this file system has no longer files
            if target == "vmdk" and tib > 62:
                continue  # nor has VMFS
            found = {"empty_tib": tib, "target": target} | _one(source, folder / "target", arguments)
            results.append(found)
            _print(f"{tib} TiB, empty", target, found)
        source.unlink()
    return results


def of_looking(folder: Path, runs: int) -> list[dict[str, Any]]:
    """`info` and `map` of a qcow2 of 1 TiB with every cluster allocated, as a difference to qemu-img's."""
    image = folder / "allocated.qcow2"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", str(image), "1T"]
    subprocess.run(command, check=True)
    commands: dict[str, tuple[Command, Command]] = {
        "info": ([_VDISK, "info", image], ["qemu-img", "info", image]),
        "map": ([_VDISK, "map", image], ["qemu-img", "map", image]),
        "map --json": ([_VDISK, "map", "--json", image], ["qemu-img", "map", "--output=json", image]),
    }
    results = []
    for name, (ours, theirs) in commands.items():
        found = pair(ours, theirs, runs, lambda: None)
        row = {
            "command": name,
            "ours_seconds": round(found.ours.median, 3),
            "theirs_seconds": round(found.theirs.median, 3),
            "difference_seconds": round(found.difference, 3),
            "peak_mib": found.ours.peak_bytes >> 20,
            "meets_bar": found.difference <= _LOOKING_BAR_SECONDS,
        }
        results.append(row)
        print(
            f"{name:<18}1 TiB allocated {row['ours_seconds']:>8.2f}{row['theirs_seconds']:>8.2f}"
            f"{row['difference_seconds']:>+7.2f} s (bar: +{_LOOKING_BAR_SECONDS} s){'' if row['meets_bar'] else '!'}",
            flush=True,
        )
    image.unlink()
    return results


def main() -> None:
    """Measure all three, print, write bench/results/growth-*.json."""
    parser = argparse.ArgumentParser(prog="bench.growth", description=__doc__)
    parser.add_argument("--data", type=int, nargs="*", default=[1, 4, 16], metavar="GIB", help="sizes of the data")
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    folder = corpus.CACHE / "growth"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(f"{'disk':<18}{'to':<17}{'seconds':>8}{'CPU':>8}{'MiB':>6}")
    try:
        results = {
            "data": of_data(folder, tuple(given.data)),
            "empty": of_empty_disks(folder),
            "looking": of_looking(folder, given.runs),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    out = Path(__file__).resolve().parent / "results"
    out.mkdir(exist_ok=True)
    path = out / f"growth-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"details in {path}")


if __name__ == "__main__":
    main()
