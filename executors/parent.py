"""A process that does not outlive the one that started it."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1


PARENT = "MLOC_PARENT"
"""Environment variable by which a process that takes a while to begin is told whose child it is."""


def end_with_parent(number: signal.Signals, parent: int | None = None) -> None:
    """Get this signal when the parent dies (Linux, prctl(2)); exit at once when it has died already.

    `parent` is the id of the process that started this one; without it, a parent that died before this call is missed.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = parent or os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(128 + number)


def end_with(process: int, number: signal.Signals) -> None:
    """Get this signal when a process ends that is not the parent, given by its file descriptor (pidfd_open(2))."""
    threading.Thread(target=_end_with, args=(process, number), daemon=True, name="parent").start()


def _end_with(process: int, number: signal.Signals) -> None:
    watched = select.poll()
    watched.register(process, select.POLLIN)
    watched.poll()
    os.kill(os.getpid(), number)
