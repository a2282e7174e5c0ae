"""What a part of the torture came to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Counts by name, and what went wrong."""

    runs: Counter[str] = field(default_factory=Counter)
    """By what was done, or what it was done to."""
    ends: Counter[str] = field(default_factory=Counter)
    """What was found afterwards."""
    failures: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Runs in all."""
        return sum(self.runs.values())

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.runs.items())
