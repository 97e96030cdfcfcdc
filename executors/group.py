"""A process group that is ended as a whole."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import Protocol


class Process(Protocol):
    """What `subprocess.Popen` and a warm stage have in common."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None:
        """Return the exit code (negative: the signal that killed it), or None while it runs."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; raises subprocess.TimeoutExpired."""
        ...


def end_group(child: Process, grace: float) -> int:
    """End a process and all of its group, SIGTERM and `grace` seconds later SIGKILL; returns its exit code."""
    if child.poll() is None:
        signal_group(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace)
    signal_group(child.pid, signal.SIGKILL)
    return child.wait()


def signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to a process group, if it is there."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return
