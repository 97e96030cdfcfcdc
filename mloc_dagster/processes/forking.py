"""Signals and children of a process that waits in a selector and forks."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

_ENDING = (signal.SIGTERM, signal.SIGINT)
_TAKEN = (*_ENDING, signal.SIGCHLD)


class Signals:
    """Wakes the selector of a process when a child has ended, or when it is asked to end itself."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self.asked_to_end = False
        """Whether SIGTERM or SIGINT came; looked at by the loop, since a signal comes in the middle of anything."""
        self._woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        selector.register(self._woken, selectors.EVENT_READ)
        self.take()

    def take(self) -> None:
        """Take the signals; to be called again after other code may have taken them."""
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in _ENDING:
            signal.signal(number, self._ask_to_end)

    def heard(self, ready: Sequence[object]) -> None:
        """Take note of what woke the selector."""
        if self._woken in ready:
            self._woken.recv(4096)

    def forget(self) -> None:
        """In a child: take signals as a program does that was just started."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        self._woken.close()
        self._wake.close()

    def _ask_to_end(self, *_: object) -> None:
        self.asked_to_end = True


def check_no_threads() -> None:
    """Raise RuntimeError when another thread runs: a fork would leave its locks as they are."""
    if threading.active_count() != 1:
        names = ", ".join(thread.name for thread in threading.enumerate())
        raise RuntimeError(f"this process cannot fork with threads running: {names}")


def fork(work: Callable[[], int], forget: Callable[[], None]) -> int:
    """Fork a child that first forgets what is its parent's, then does its work and ends with its exit code.

    Signals wait until the child is ready for them. Returns the child's pid; raises OSError.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)
    try:
        pid = os.fork()
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        raise
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return pid
    code = os.EX_SOFTWARE
    try:
        forget()
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        code = work()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else os.EX_SOFTWARE
    except BaseException:
        traceback.print_exc()
    finally:
        leave(code)
    raise AssertionError("unreachable")


def leave(code: int) -> None:
    """End this process at once: what its parent had registered to be done at exit is not the child's to do."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def ended_children() -> Iterator[tuple[int, int]]:
    """Yield pid and exit code (negative: the signal) of children that have ended."""
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            yield pid, os.waitstatus_to_exitcode(status)
