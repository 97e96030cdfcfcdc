"""The pool: a process that waits on a socket and forks a child for each run."""

from __future__ import annotations

import gc
import mmap
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mloc_dagster.placement.launcher import fingerprint
from mloc_dagster.placement.launcher.child import become_worker
from mloc_dagster.placement.launcher.children import Children, Done
from mloc_dagster.placement.launcher.protocol import Answer, Request, receive_request, send
from mloc_dagster.processes.forking import Signals, check_no_threads, ended_children, fork
from mloc_dagster.processes.loaded import Loaded
from mloc_dagster.processes.sockets import is_same_user, is_there, listen
from mloc_dagster.store.home import Home

_TICK_SECONDS = 1.0
_QUIET = 0.05
"""Seconds without a request after which there is time for other things."""
_NO_SPARES_SECONDS = 10.0
_LULL = 1.0
"""Seconds without a request after which a child is forked ahead: to warm one up costs more CPU time than it saves, so
it is not for times when one run follows the other."""
_PATIENCE_SECONDS = 5.0
"""How long a launcher may take to say what it wants; nobody else is served meanwhile."""
_EXPECTED = (0, 1)
"""Exit codes of a worker that has said itself how its run ended."""


@dataclass(frozen=True)
class Work:
    """What the pool's children do, and where they are at home.

    `run(run_id, ready)` carries a run out, calls `ready` when the run is its own, and returns an exit code, and whether
    another run may follow in the same child: it has left nothing there, and nobody may still want the child's end;
    `bury(run_id, pid, reason)` reports a run whose worker died without a word. `rehearse()` does in the pool itself
    what a run does, so that its children find all of it loaded; it leaves no thread and no connection behind.
    `warm_up()` does what it can of that in a child that waits for a run. `settings` is the instance's `dagster.yaml`.
    """

    run: Callable[[str, Callable[[], None]], Done]
    bury: Callable[[str, int, str], None]
    rehearse: Callable[[], None]
    warm_up: Callable[[], None]
    home: Home
    settings: Path
    idle_seconds: float


def serve(work: Work, address: Path, tell_ready: Callable[[], None]) -> None:
    """Serve until idle, stale, told to stop, or the home is gone; then wait for the runs that are going on.

    Nothing but the caller's thread may run, and no database may be open: each child gets a copy of all that is here.
    Raises RuntimeError when there is another thread.
    """
    check_no_threads()
    pool = _Pool(work, address)
    tell_ready()
    pool.loop()


class _Run(NamedTuple):
    request: Request
    started: mmap.mmap


class _Pool:
    def __init__(self, work: Work, address: Path) -> None:
        self._work, self._address = work, address
        self._runs: dict[int, _Run] = {}
        self._buriers: set[int] = set()
        self._loaded = Loaded()
        self._opened = fingerprint.opening_variables(work.settings, os.environ)
        self._listener = listen(address)
        self._inode = address.stat().st_ino
        self._idle_since = self._look_again = self._asked = time.monotonic()
        self._open, self._rehearsed = True, False
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._signals = Signals(self._selector)
        self._children = Children(self._selector)
        self._no_spares_until = 0.0

    def loop(self) -> None:
        while self._open or self._runs or self._buriers:
            ready = [key.fileobj for key, _ in self._selector.select(self._timeout())]
            if not ready and self._open:
                self._get_ahead()
            self._signals.heard(ready)
            if self._signals.asked_to_end:
                self._close()
                ready = []
            for pid in self._children.hear(ready):
                self._runs.pop(pid, None)
            self._children.drop_used()
            self._reap()
            if self._open and self._listener in ready:
                self._serve_one()
            if self._open and self._is_over():
                self._close()
            self._look_at_libraries()

    def _timeout(self) -> float:
        if not self._rehearsed:
            return _QUIET
        return _LULL / 4 if self._open and (self._children.wanted or self._children.used) else _TICK_SECONDS

    def _get_ahead(self) -> None:
        """Use a moment in which nobody asks for anything."""
        if not self._rehearsed:
            self._rehearse()
        elif self._children.wanted and time.monotonic() > max(self._asked + _LULL, self._no_spares_until):
            try:
                self._children.add(self._fork, self._work.warm_up, self._run)
            except OSError as error:  # no memory, or too many processes: runs need them more
                print(f"no child is forked ahead just now: {error}", file=sys.stderr, flush=True)
                self._no_spares_until = time.monotonic() + _NO_SPARES_SECONDS

    def _look_at_libraries(self) -> None:
        """Once a tick, since it takes longer than to fork does."""
        if self._open and time.monotonic() > self._look_again:
            self._is_stale(self._loaded.changed_library())
            self._look_again = time.monotonic() + _TICK_SECONDS

    def _changed_variable(self, request: Request) -> str | None:
        wanted = fingerprint.opening_variables(self._work.settings, request.environment)
        return next((key for key in {*wanted, *self._opened} if wanted.get(key) != self._opened.get(key)), None)

    def _is_stale(self, changed: str | None) -> bool:
        if changed is None:
            return False
        self._close()
        print(f"{changed} has changed; another pool takes over", file=sys.stderr, flush=True)
        return True

    def _rehearse(self) -> None:
        """Warm up in the first quiet moment: the run that the pool was started for need not wait for it."""
        self._rehearsed = True
        try:
            self._work.rehearse()
        except Exception as error:  # such as a full disk; the children will say so themselves
            print(f"the rehearsal failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        check_no_threads()
        self._signals.take()
        self._loaded = Loaded(self._loaded)
        self._idle_since = time.monotonic()
        gc.collect()
        gc.freeze()

    def _is_over(self) -> bool:
        if self._runs:
            self._idle_since = time.monotonic()
        idle = time.monotonic() - self._idle_since > self._work.idle_seconds
        return idle or not is_there(self._address, self._inode)

    def _close(self) -> None:
        """Take no more runs; the next launcher starts another pool."""
        if not self._open:
            return
        self._open = False
        self._selector.unregister(self._listener)
        self._listener.close()
        self._children.drop_all()
        if is_there(self._address, self._inode):
            self._address.unlink(missing_ok=True)

    def _serve_one(self) -> None:
        try:
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(_PATIENCE_SECONDS)
                if is_same_user(connection):
                    self._answer(connection, receive_request(connection))
        except (OSError, ValueError) as error:
            print(f"a launcher was not understood: {type(error).__name__}: {error}", file=sys.stderr, flush=True)

    def _answer(self, connection: socket.socket, request: Request) -> None:
        if request.action == "stop":
            self._close()
            send(connection, Answer(state="stopping"))
            return
        if self._is_stale(self._loaded.changed() or self._changed_variable(request)):
            send(connection, Answer(state="stale"))
            return
        found = self._children.hand_over(connection, request)
        pid, started = found or self._children.start(self._fork, connection, request, self._run)
        self._runs[pid] = _Run(request, started)
        self._idle_since = self._asked = time.monotonic()

    def _fork(self, work: Callable[[], int]) -> int:
        return fork(work, self._forget)

    def _forget(self) -> None:
        """In a child: close what is the pool's."""
        self._signals.forget()
        self._children.forget()
        self._runs.clear()
        for thing in (self._listener, self._selector):
            thing.close()

    def _run(self, connection: socket.socket, request: Request, started: mmap.mmap) -> Done:
        become_worker(request, self._work.home)

        def ready() -> None:
            started[0] = 1
            with suppress(OSError):  # a launcher that is gone needs no answer
                send(connection, Answer(state="started", pid=os.getpid()))
            connection.close()

        return self._work.run(request.run_id, ready)

    def _reap(self) -> None:
        for pid, code in ended_children():
            self._buriers.discard(pid)
            run = self._runs.pop(pid, None)
            if run is not None:
                self._see_off(pid, run, code)

    def _see_off(self, pid: int, run: _Run, code: int) -> None:
        """End what a worker has left in its session, and have its run reported when it died without a word.

        A worker that died before the run was its own is no loss: its launcher starts the run in another way.
        """
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        if not run.started[0] or code in _EXPECTED:
            return
        log = self._work.home.logs / f"{run.request.run_id}.log"
        reason = f"signal {-code} (killed, or out of memory)" if code < 0 else f"exit code {code}; see {log}"

        def bury() -> int:
            os.environ.clear()  # another attempt is started as the submitter would
            os.environ.update(run.request.environment)
            with suppress(OSError):
                os.chdir(run.request.folder)
            self._work.bury(run.request.run_id, pid, reason)
            return 0

        try:
            self._buriers.add(self._fork(bury))
        except OSError as error:  # a daemon, or whoever looks at the run next, reports it
            print(f"run {run.request.run_id} was lost, and cannot be reported: {error}", file=sys.stderr, flush=True)
