"""A command that is sent a signal while it works."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def signalled(number: int, when: Callable[[], object], *arguments: str | Path) -> tuple[int, str]:
    """Runs `vdisk` with `arguments` and sends it the signal `number` once `when` is so; its status and its errors."""
    command = [sys.executable, "-m", "vdisk", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not when():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said.strip()
