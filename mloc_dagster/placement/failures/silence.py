"""When the absence of signs of life means that work is lost."""

from __future__ import annotations

import os
import time

LOST_AFTER = "MLOC_LOST_AFTER_SECONDS"
_DEFAULT_SECONDS = 120.0
_LEAST_SECONDS = 3.0
"""Work gives a sign of life each second; a bound must bear a few that come late."""
_LONGEST_LOOK_SECONDS = 2.0
"""So much of the time between two looks counts: whoever looks may have been stopped, too."""


def lost_after() -> float | None:
    """Return after how many silent seconds work is lost, from MLOC_LOST_AFTER_SECONDS; None: never (it is 0).

    Raises ValueError, with a message for people, when that is no such number.
    """
    text = os.environ.get(LOST_AFTER) or str(_DEFAULT_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if seconds == 0:
        return None
    if not _LEAST_SECONDS <= seconds < float("inf"):
        raise ValueError(f"{LOST_AFTER} is {text!r}: write seconds, {_LEAST_SECONDS:g} or more, or 0 for never")
    return seconds


class Silence:
    """Counts seconds without a sign of life, only those that were watched."""

    def __init__(self, limit: float | None) -> None:
        self._limit, self._silent, self._looked = limit, 0.0, time.monotonic()

    def over(self, alive: bool) -> bool:
        """Note whether there was a sign of life since the last look; returns whether the limit is passed."""
        now = time.monotonic()
        self._silent = 0.0 if alive else self._silent + min(now - self._looked, _LONGEST_LOOK_SECONDS)
        self._looked = now
        return self._limit is not None and self._silent > self._limit
