"""The feeders of a web server: started with it, woken by it, gone with it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress

from mloc_dagster.service.intake import LANES

_log = logging.getLogger("mloc")
_AGAIN_SECONDS = 2.0
_END_SECONDS = 20.0


class Feeders:
    """One process a lane; one that ended is started again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._processes = [_start(lane) for lane in range(LANES)]
        self._watch = threading.Thread(target=self._keep, name="feeders", daemon=True)
        self._watch.start()

    def knock(self) -> None:
        """Say that something came."""
        with self._lock:
            for process in self._processes:
                with suppress(OSError, ValueError):  # it has ended, or has more than enough to read
                    assert process.stdin
                    process.stdin.write(b"\n")

    def alive(self) -> bool:
        """Whether all of them run."""
        return all(process.poll() is None for process in self._processes)

    def close(self) -> None:
        """End them; each finishes the task that it is at."""
        self._closed.set()
        with self._lock:
            for process in self._processes:
                with suppress(OSError):
                    assert process.stdin
                    process.stdin.close()
        deadline = time.monotonic() + _END_SECONDS
        for process in self._processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()

    def _keep(self) -> None:
        while not self._closed.wait(_AGAIN_SECONDS):
            with self._lock:
                for lane, process in enumerate(self._processes):
                    if process.poll() is not None and not self._closed.is_set():
                        try:
                            self._processes[lane] = _start(lane)
                        except OSError as error:  # no memory just now: the next look tries again
                            _log.warning("lane %d of the intake has no feeder: %s", lane, error)


def _start(lane: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mloc_dagster.service.feeder", str(lane)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, bufsize=0)
    assert process.stdin
    os.set_blocking(process.stdin.fileno(), False)  # a feeder that does not read never stops the web server
    return process
