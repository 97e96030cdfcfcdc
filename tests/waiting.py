"""Waiting for what another process does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

PATIENCE = float(os.environ.get("MLOC_TEST_PATIENCE", "2"))
"""Bounds in tests are those of a quiet machine; a busy one has so many times as long."""


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait until a condition holds; fails the test with `what` when it does not in PATIENCE times `seconds`."""
    deadline = time.monotonic() + PATIENCE * seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE * seconds:g} s in vain for {what}"
        time.sleep(0.05)
