"""The surroundings of one item's tools: its folder and its time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Room:
    """Where the tools of one item work, and until when (seconds of `time.monotonic`)."""

    folder: Path
    until: float

    def seconds_left(self, longest: float) -> float:
        """Seconds that a call may take: `longest`, or what is left of the item's time."""
        return max(0.1, min(longest, self.until - time.monotonic()))
