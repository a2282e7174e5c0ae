"""The hostile images, each held out to every command."""

from __future__ import annotations

from pathlib import Path

from tests.hostile.corpus import CORPUS
from tests.hostile.stand import COMMANDS, MORE, MOST_BYTES, fault_of, run_apart

_BATCHES = 12


def hold_out_all(root: Path) -> int:
    """Print how many there were; returns the number of failures."""
    names = sorted(CORPUS)
    runs, failures, most_bytes, slowest = 0, [], 0, (0.0, "")
    for batch in range(_BATCHES):
        images = {}
        for name in names[batch::_BATCHES]:
            folder = root / "corpus" / name
            folder.mkdir(parents=True)
            images[str(CORPUS[name](folder))] = name
        rows, peak_bytes = run_apart(list(images), root, len(MORE))
        runs += len(rows)
        most_bytes = max(most_bytes, peak_bytes)
        for row in rows:
            label = f"{images[row['image']]}: {row['command']}"
            slowest = max(slowest, (row["seconds"], label))
            fault = fault_of(row)
            if fault is not None:
                failures.append(f"{label}: {fault}")
    if most_bytes >= MOST_BYTES:
        failures.append(f"it took {most_bytes >> 20} MiB")
    print(
        f"{len(names)} hostile images, {len(COMMANDS) + len(MORE)} commands on each, {runs} runs: slowest "
        f"{slowest[0]:.2f} s ({slowest[1]}), at most {most_bytes >> 20} MiB; {len(failures)} failures",
        flush=True,
    )
    for failure in failures[:40]:
        print(f"    FAILED {failure}", flush=True)
    return len(failures)
