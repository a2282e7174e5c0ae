"""How much memory a program of its own had resident at most."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# VmHWM is the program's own. ru_maxrss would count what the process that started it had, which is a test's own memory.
_PRINT_PEAK_KIB = """
import re
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def peak_bytes_of(code: str, *arguments: str | Path) -> int:
    """Run Python `code`, which prints nothing, in a process of its own; the most memory that it had resident."""
    command = [sys.executable, "-c", code + _PRINT_PEAK_KIB, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) << 10
