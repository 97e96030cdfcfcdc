"""Children that a pool forks ahead: each has warmed up, so that all it needs is in memory of its own, and waits."""

from __future__ import annotations

import gc
import mmap
import selectors
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from mloc_dagster.placement.launcher.protocol import Request, receive_request, send

_MOST = 2
_PATIENCE_SECONDS = 5.0

Run = Callable[[socket.socket, Request, mmap.mmap], int]
"""Carries a run out for who asks on a connection, and says in the byte that it is its own; returns an exit code."""


class _Spare(NamedTuple):
    line: socket.socket
    started: mmap.mmap


class Spares:
    """The waiting children of a pool. A spare is ready when it has written to its line, and ends when that closes."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._warming: dict[int, _Spare] = {}
        self._ready: dict[int, _Spare] = {}

    @property
    def wanted(self) -> bool:
        """Whether there is room for another one."""
        return len(self._warming) + len(self._ready) < _MOST

    def add(self, fork: Callable[[Callable[[], int]], int], warm_up: Callable[[], None], run: Run) -> None:
        """Fork a spare."""
        ours, its = socket.socketpair()
        ours.settimeout(_PATIENCE_SECONDS)
        started = mmap.mmap(-1, 1)

        def wait() -> int:
            ours.close()
            return _wait(its, started, warm_up, run)

        try:
            pid = fork(wait)
        except OSError:
            ours.close()
            raise
        finally:
            its.close()
        self._selector.register(ours, selectors.EVENT_READ)
        self._warming[pid] = _Spare(ours, started)

    def hear(self, ready: Sequence[object]) -> None:
        """Take note of spares whose lines can be read: they have warmed up, or they are gone."""
        for pid, spare in [*self._warming.items(), *self._ready.items()]:
            if spare.line not in ready:
                continue
            if spare.line.recv(1):
                self._ready[pid] = self._warming.pop(pid)
            else:
                self._drop(pid)

    def hand_over(self, connection: socket.socket, request: Request) -> tuple[int, mmap.mmap] | None:
        """Give a request, and the connection on which to answer, to a spare; returns its pid and its byte."""
        while self._ready:
            pid, spare = next(iter(self._ready.items()))
            try:
                socket.send_fds(spare.line, [b"1"], [connection.fileno()])
                send(spare.line, request)
            except OSError:  # it was killed
                self._drop(pid)
                continue
            started = spare.started
            self._drop(pid)
            return pid, started
        return None

    def drop_all(self) -> None:
        """Close all lines, so that the spares end."""
        for pid in [*self._warming, *self._ready]:
            self._drop(pid)

    def forget(self) -> None:
        """In a child: close the lines of its siblings."""
        for spare in [*self._warming.values(), *self._ready.values()]:
            spare.line.close()

    def _drop(self, pid: int) -> None:
        spare = self._warming.pop(pid, None) or self._ready.pop(pid)
        self._selector.unregister(spare.line)
        spare.line.close()


def _wait(line: socket.socket, started: mmap.mmap, warm_up: Callable[[], None], run: Run) -> int:
    """What a spare does; ends with 0 when it is not needed any more."""
    with suppress(Exception):  # such as a full disk; the run will say so itself
        warm_up()
    gc.freeze()
    line.send(b"1")
    _, handles, *_ = socket.recv_fds(line, 1, 1)
    if not handles:
        return 0
    connection = socket.socket(fileno=handles[0])
    request = receive_request(line)
    line.close()
    return run(connection, request, started)
