"""The children of a pool: those that carry out a run, and those that wait for one.

A child that was forked ahead has warmed up, so that all it needs is in memory of its own. One that has carried out a
light run waits for another one like it, but only as long as one follows the other.
"""

from __future__ import annotations

import gc
import mmap
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from mloc_dagster.placement.launcher.protocol import Request, receive_request, send

_MOST_AHEAD = 2
_MOST_RUNS = 50
"""After so many a child ends, so that nothing adds up in it."""
_USED_SECONDS = 1.0
"""So long a child that has carried out a run waits for another one."""
_PATIENCE_SECONDS = 5.0


class Done(NamedTuple):
    """How a run ended in a child: its exit code, and whether another run may follow there."""

    code: int
    again: bool


Run = Callable[[socket.socket, Request, mmap.mmap], Done]
"""Carries a run out for who asks on a connection, and says in the byte that it is its own."""


@dataclass(eq=False)
class _Child:
    line: socket.socket
    started: mmap.mmap
    """The byte in which it says that the run is its own."""
    waits: bool = False
    since: float = 0.0
    """When it began to wait, by the monotonic clock."""
    last: Request | None = None
    """What it was given; None for one that was forked ahead and has not been asked yet."""


class Children:
    """The children of a pool by pid. Each says on its line that it waits, and ends when that closes."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._all: dict[int, _Child] = {}

    @property
    def wanted(self) -> bool:
        """Whether there is room for another one that is forked ahead."""
        return sum(child.last is None for child in self._all.values()) < _MOST_AHEAD

    @property
    def used(self) -> bool:
        """Whether a child waits that has carried out a run."""
        return any(child.waits and child.last for child in self._all.values())

    def add(self, fork: Callable[[Callable[[], int]], int], warm_up: Callable[[], None], run: Run) -> None:
        """Fork a child ahead; raises OSError."""

        def live(line: socket.socket, started: mmap.mmap) -> int:
            with suppress(Exception):  # such as a full disk; the run will say so itself
                warm_up()
            gc.freeze()
            return _serve(line, started, run, 0)

        self._fork(fork, live, None)

    def start(
        self, fork: Callable[[Callable[[], int]], int], connection: socket.socket, request: Request, run: Run
    ) -> tuple[int, mmap.mmap]:
        """Fork a child for a request; returns its pid, and its byte. Raises OSError."""
        self._drop_one_used()  # it was no match, and there must not be more and more of them

        def live(line: socket.socket, started: mmap.mmap) -> int:
            done = run(connection, request, started)
            return _serve(line, started, run, 1) if done.again else done.code

        return self._fork(fork, live, request)

    def hear(self, ready: Sequence[object]) -> list[int]:
        """Take note of children whose lines can be read; returns the pids of those that have ended a run and wait."""
        ended = []
        for pid, child in list(self._all.items()):
            if child.line not in ready:
                continue
            if not _received(child.line):
                self._drop(pid)
                continue
            child.waits, child.since = True, time.monotonic()
            if child.last is not None:
                ended.append(pid)
        return ended

    def hand_over(self, connection: socket.socket, request: Request) -> tuple[int, mmap.mmap] | None:
        """Give a request, and the connection on which to answer, to a child that waits; returns its pid and its byte.

        One that has carried out a run takes only one from the same place: what it has read of its environment holds.
        """
        for pid, child in sorted(self._all.items(), key=lambda item: item[1].last is None):
            if not child.waits or (child.last and not _same_place(child.last, request)):
                continue
            child.started[0], child.waits, child.last = 0, False, request
            try:
                socket.send_fds(child.line, [b"1"], [connection.fileno()])
                send(child.line, request)
            except OSError:  # it was killed
                self._drop(pid)
                continue
            return pid, child.started
        return None

    def drop_used(self) -> None:
        """Have the children end that have carried out a run, and waited for another one long enough."""
        until = time.monotonic() - _USED_SECONDS
        for pid in [pid for pid, child in self._all.items() if child.waits and child.last and child.since < until]:
            self._drop(pid)

    def drop_all(self) -> None:
        """Close all lines, so that those that wait end now, and the others after their run."""
        for pid in list(self._all):
            self._drop(pid)

    def forget(self) -> None:
        """In a child: close the lines of its siblings."""
        for child in self._all.values():
            child.line.close()
        self._all.clear()  # the environments of others, with what is secret in them

    def _fork(
        self, fork: Callable[[Callable[[], int]], int], live: Callable[[socket.socket, mmap.mmap], int],
        request: Request | None,
    ) -> tuple[int, mmap.mmap]:  # fmt: skip
        ours, its = socket.socketpair()
        ours.settimeout(_PATIENCE_SECONDS)
        started = mmap.mmap(-1, 1)

        def begin() -> int:
            ours.close()
            return live(its, started)

        try:
            pid = fork(begin)
        except OSError:
            ours.close()
            raise
        finally:
            its.close()
        self._selector.register(ours, selectors.EVENT_READ)
        self._all[pid] = _Child(ours, started, last=request)
        return pid, started

    def _drop_one_used(self) -> None:
        for pid, child in self._all.items():
            if child.waits and child.last:
                return self._drop(pid)

    def _drop(self, pid: int) -> None:
        child = self._all.pop(pid)
        self._selector.unregister(child.line)
        child.line.close()


def _received(line: socket.socket) -> bytes:
    try:
        return line.recv(1)
    except OSError:
        return b""


def _same_place(one: Request, other: Request) -> bool:
    return (one.environment, one.folder, one.umask) == (other.environment, other.folder, other.umask)


def _serve(line: socket.socket, started: mmap.mmap, run: Run, runs: int) -> int:
    """What a child does that waits; ends with 0 when it is not needed any more."""
    while runs < _MOST_RUNS:
        try:
            line.send(b"1")
            _, handles, *_ = socket.recv_fds(line, 1, 1)
        except (OSError, KeyboardInterrupt):  # the pool was killed, or this process is to end
            return 0
        if not handles:
            return 0
        done = run(socket.socket(fileno=handles[0]), receive_request(line), started)
        runs += 1
        if not done.again:
            return done.code
    return 0
