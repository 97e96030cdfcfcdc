"""Between processes of one machine: whether a daemon is there, and a knock that wakes it."""

from __future__ import annotations

import fcntl
import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PATIENCE_SECONDS = 2.0


def knock(root: Path) -> None:
    """Wake the daemon of a Dagster home, if there is one."""
    with suppress(OSError):  # nobody listens, or it has more than enough to read
        pipe = os.open(_pipe(root), os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(pipe, b"1")
        finally:
            os.close(pipe)


def daemon_is_there(root: Path) -> bool:
    """Whether a daemon runs for a Dagster home on this machine."""
    try:
        with _lock(root).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def only_daemon(root: Path) -> Iterator[bool]:
    """Be the daemon of a Dagster home as long as the block runs; gives False when there is one."""
    with _lock(root).open("a") as file:
        deadline = time.monotonic() + _PATIENCE_SECONDS  # someone may just be asking whether there is one
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    yield False
                    return
                time.sleep(0.05)
        yield True


class Door:
    """Where knocks are heard."""

    def __init__(self, root: Path) -> None:
        with suppress(FileExistsError):
            os.mkfifo(_pipe(root), 0o600)
        self._pipe = os.open(_pipe(root), os.O_RDWR | os.O_NONBLOCK)  # its own writer, so that it never ends

    def wait(self, seconds: float) -> bool:
        """Wait for a knock; returns whether there was one."""
        heard, _, _ = select.select([self._pipe], [], [], seconds)
        if heard:
            with suppress(BlockingIOError):
                while os.read(self._pipe, 65_536):
                    pass
        return bool(heard)

    def close(self) -> None:
        """Listen no more."""
        os.close(self._pipe)


def _pipe(root: Path) -> Path:
    return root / "queue.fifo"


def _lock(root: Path) -> Path:
    return root / "queue.lock"
