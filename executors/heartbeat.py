"""The sign of life of a process that works: a file that it touches."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

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
