"""`python -m bench`: convert side by side with qemu-img, print the table, write bench/results/*.json."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import corpus, rows
from bench.measure import Command, Pair, pair, run

_VDISK = Path(sys.executable).with_name("vdisk")
_RESULTS = Path(__file__).resolve().parent / "results"
_HEADING = "disk    from        to            vdisk s  qemu s  ratio      bar  spread   CPU    MiB  qemu   size"
_OURS = {
    "qcow2-zlib": ["-c", "-O", "qcow2"],
    "qcow2-zstd": ["-c", "-O", "qcow2", "-o", "compression_type=zstd"],
    "vmdk-stream": ["-O", "vmdk", "-o", "subformat=streamOptimized"],
}


def ours(source: Path, variant: str, target: Path) -> Command:
    """Our command for a conversion, with its defaults."""
    return [_VDISK, "convert", *_OURS.get(variant, ["-O", variant.split("-")[0]]), source, target]


def theirs(source: Path, variant: str, target: Path, *, tuned: bool = False) -> Command:
    """qemu-img's, with its defaults, or with threads and out-of-order writes."""
    return ["qemu-img", "convert", *(["-m", "16", "-W"] if tuned else []), *corpus.VARIANTS[variant][0], source, target]


def measure(row: rows.Row, folder: Path, runs: int, tuned: bool) -> dict[str, Any]:
    """One row: times, ratio, peak memory, sizes; the output is verified first."""
    source = corpus.image(row.disk, row.source)
    target = folder / f"target{corpus.VARIANTS[row.target][1]}"
    other = folder / f"other{corpus.VARIANTS[row.target][1]}"

    def clear() -> None:
        target.unlink(missing_ok=True)
        other.unlink(missing_ok=True)

    def settle() -> None:
        clear()
        _use_memory(folder, output_bytes)

    corpus.forget_others(source)
    clear()
    run(ours(source, row.target, target))
    run(theirs(source, row.target, other))
    verified = subprocess.run(["qemu-img", "compare", target, corpus.disk(row.disk)], check=False, capture_output=True)
    if verified.returncode:
        raise SystemExit(
            f"bench: {row.disk} {row.source} to {row.target}: the output differs: {verified.stdout.decode()}"
        )
    size_ratio = _allocated(target) / max(1, _allocated(other))
    output_bytes = _allocated(other)
    found = pair(ours(source, row.target, target), theirs(source, row.target, other), runs, settle)
    result = _result(row, found, size_ratio)
    if tuned:
        clear()
        tuned_pair = pair(
            ours(source, row.target, target), theirs(source, row.target, other, tuned=True), max(1, runs // 2), settle
        )
        result["ratio_tuned"] = round(tuned_pair.ratio, 3)
    clear()
    return result


def _use_memory(folder: Path, length: int) -> None:
    """Write as much as a run will and remove it: on a virtual machine the host takes back memory that is free, and
    whoever writes to it first pays for having it again."""
    path = folder / "memory"
    zeros = bytes(1 << 20)
    with path.open("wb", buffering=0) as file:
        for _ in range(length >> 20):
            file.write(zeros)
    path.unlink()


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def _result(row: rows.Row, found: Pair, size_ratio: float) -> dict[str, Any]:
    meets = True
    if row.bar is not None:
        meets = found.ratio <= row.bar
    if row.bar_seconds is not None:
        meets = found.difference <= row.bar_seconds
    if row.limit_seconds is not None:
        meets = meets and found.ours.median <= row.limit_seconds
    return {
        "disk": row.disk,
        "source": row.source,
        "target": row.target,
        "ours_seconds": round(found.ours.median, 3),
        "theirs_seconds": round(found.theirs.median, 3),
        "ratio": round(found.ratio, 3),
        "spread": round(found.spread, 2),
        "ours_processor_seconds": round(found.ours.processor_median, 3),
        "theirs_processor_seconds": round(found.theirs.processor_median, 3),
        "processor_ratio": round(found.processor_ratio, 3),
        "difference_seconds": round(found.difference, 3),
        "bar": row.bar if row.bar_seconds is None else f"+{row.bar_seconds} s",
        "meets_bar": meets,
        "ours_peak_mib": found.ours.peak_bytes >> 20,
        "theirs_peak_mib": found.theirs.peak_bytes >> 20,
        "size_ratio": round(size_ratio, 3),
        "ours_all": [round(seconds, 3) for seconds in found.ours.seconds],
        "theirs_all": [round(seconds, 3) for seconds in found.theirs.seconds],
    }


def floor(folder: Path) -> dict[str, float]:
    """What the machine can do now: copying the Debian disk's data by cp and by dd, in seconds."""
    source = corpus.debian()
    target = folder / "floor.raw"
    found = {}
    commands: tuple[tuple[str, Command], ...] = (
        ("cp --sparse=auto", ["cp", "--sparse=auto", "--reflink=never", source, target]),
        ("dd bs=1M conv=sparse", ["dd", "bs=1M", "conv=sparse", f"if={source}", f"of={target}"]),
    )
    for name, command in commands:
        seconds = []
        for _ in range(3):
            target.unlink(missing_ok=True)
            seconds.append(run(command).seconds)
        found[name] = round(sorted(seconds)[1], 3)
    target.unlink(missing_ok=True)
    return found


def scratch(asked: str | None) -> Path:
    """Where outputs go: in memory where there is room, so that a disk shared with others does not decide."""
    if asked is not None:
        return Path(asked)
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > 9 << 30:
        return memory / "vdisk-bench"
    return corpus.CACHE / "out"


def main() -> None:
    """Parse the arguments, measure, print, write."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few rows, three runs: about two minutes")
    parser.add_argument("--runs", type=int, help="counted runs of each command (5; quick: 3)")
    parser.add_argument(
        "--only",
        metavar="WORD",
        action="append",
        default=[],
        help="rows with this disk, source or target; may be repeated",
    )
    parser.add_argument(
        "--tuned", action=argparse.BooleanOptionalAction, help="measure against qemu-img -m 16 -W too (not when quick)"
    )
    parser.add_argument("--scratch", metavar="DIR", help="where outputs go")
    given = parser.parse_args()
    runs = given.runs or (3 if given.quick else 5)
    folder = scratch(given.scratch)
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    load = os.getloadavg()
    print(f"outputs in {folder}; {runs} runs each, in turn; medians; page cache warm; load {load[0]:.1f}")
    limits = floor(folder)
    print("floor (670 MB of data): " + ", ".join(f"{name} {seconds} s" for name, seconds in limits.items()))
    print(_HEADING)
    for row in rows.QUICK if given.quick else rows.ALL:
        if not {row.disk, row.source, row.target}.issuperset(given.only):
            continue
        found = measure(row, folder, runs, not given.quick if given.tuned is None else given.tuned)
        results.append(found)
        print(
            f"{row.disk:<8}{row.source:<12}{row.target:<13}{found['ours_seconds']:>8.2f}{found['theirs_seconds']:>8.2f}"
            f"{found['ratio']:>7.2f}{found['bar'] or '':>9}{' ' if found['meets_bar'] else '!'} "
            f"{found['spread']:>6.1f}{found['processor_ratio']:>6.2f} "
            f"{found['ours_peak_mib']:>5}{found['theirs_peak_mib']:>6}{found['size_ratio']:>7.2f}"
            + (f"  tuned {found['ratio_tuned']:.2f}" if "ratio_tuned" in found else ""),
            flush=True,
        )
    shutil.rmtree(folder, ignore_errors=True)
    _RESULTS.mkdir(exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path = _RESULTS / f"{'quick' if given.quick else 'full'}-{stamp}.json"
    machine: dict[str, Any] = {
        "processors": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    machine |= {"load_before": load, "load_after": os.getloadavg()}
    path.write_text(json.dumps({"machine": machine, "floor_seconds": limits, "rows": results}, indent=1) + "\n")
    missed = [found for found in results if not found["meets_bar"]]
    print(f"{len(results) - len(missed)} of {len(results)} rows meet their bar; details in {path}")


if __name__ == "__main__":
    main()
