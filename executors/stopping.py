"""What a process does when it is asked to end."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable

STOPPED = 143
"""The exit code of a process that SIGTERM ended, as a shell tells it."""
GRACE = "MLOC_TERMINATE_GRACE_SECONDS"
_GRACE_SECONDS = 30.0


def grace_seconds() -> float:
    """Return how long work has to store its state after SIGTERM, from MLOC_TERMINATE_GRACE_SECONDS.

    Raises ValueError, with a message for people, when that is no such number.
    """
    text = os.environ.get(GRACE) or str(_GRACE_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < 1e6:
        raise ValueError(f"{GRACE} is {text!r}: write seconds, such as {_GRACE_SECONDS:g}")
    return seconds


def on_sigterm(call: Callable[[], None], again: Callable[[], None] | None = None) -> None:
    """Make the first SIGTERM call this in a thread of its own, and each later one call `again` at once.

    The handler itself may have interrupted code that holds the very lock which the call needs (as `Event.wait` does for
    a moment before it waits), and would then wait for ever. A forked child that keeps the handler ends at its SIGTERM.
    """
    owner, asked = os.getpid(), False
    reading, writing = os.pipe()

    def listen() -> None:
        os.read(reading, 1)
        call()

    def handle(number: int, frame: object) -> None:
        nonlocal asked
        if os.getpid() != owner:
            os._exit(STOPPED)
        if not asked:
            asked = True
            os.write(writing, b"!")
        elif again is not None:
            again()

    threading.Thread(target=listen, daemon=True, name="stop").start()
    signal.signal(signal.SIGTERM, handle)
