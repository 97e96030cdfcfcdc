"""Signs of life of a process that works: a file that it touches, and the CPU time that it uses."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

BEATS = "heartbeat"
"""The file, in the folder of logs."""
_SECONDS = 1.0


def beat(path: Path) -> None:
    """Touch a file each second as long as this process runs, from a thread, whatever the work itself does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    threading.Thread(target=_beat, args=(path,), daemon=True, name="heartbeat").start()


def _beat(path: Path) -> None:
    while True:
        with suppress(OSError):  # such as a full disk: the next may come through
            path.touch()
        time.sleep(_SECONDS)


class Pulse:
    """Signs of life of one process: a file that it touches, where there is one, and the CPU time that it uses.

    The latter is for work that keeps its own threads from running, such as a long call into a library.
    """

    def __init__(self, pid: int, beats: Path | None = None) -> None:
        self._pid, self._beats = pid, beats
        self._seen = self._now()

    def felt(self) -> bool:
        """Whether there was a sign of life since this was asked last."""
        before, self._seen = self._seen, self._now()
        return self._seen != before

    def _now(self) -> tuple[int, float]:
        return self._touched(), self._used()

    def _touched(self) -> int:
        try:
            return self._beats.stat().st_mtime_ns if self._beats else 0
        except OSError:
            return 0

    def _used(self) -> float:
        try:
            times = psutil.Process(self._pid).cpu_times()
        except psutil.Error:
            return 0.0
        return times.user + times.system
