"""The warm process: waits on a socket and forks a child for each stage."""

from __future__ import annotations

import gc
import os
import selectors
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from executors.warm import child, surroundings
from executors.warm.libraries import Loaded
from executors.warm.messages import Answer, Ask, receive_ask, send
from mloc_dagster.processes import loaded as files
from mloc_dagster.processes.forking import Signals, check_no_threads, ended_children, fork
from mloc_dagster.processes.sockets import is_same_user, is_there, listen

_TICK_SECONDS = 1.0
_PATIENCE_SECONDS = 5.0
"""How long an asker may take to say what it wants; nobody else is served meanwhile."""


def serve(loaded: Loaded, address: Path, idle_seconds: float, lock: int) -> None:
    """Serve until idle, stale, told to stop, or the socket is gone; then wait for the stages that are going on.

    `lock` is a file descriptor that no child is to hold. Raises RuntimeError when there is another thread.
    """
    check_no_threads()
    gc.collect()
    gc.freeze()
    _Server(loaded, address, idle_seconds, lock).loop()


class _Server:
    def __init__(self, loaded: Loaded, address: Path, idle_seconds: float, lock: int) -> None:
        self._loaded, self._address, self._idle_seconds, self._lock = loaded, address, idle_seconds, lock
        self._files = files.Loaded()
        self._stages: dict[int, socket.socket] = {}
        """The connection of each stage's asker, who is told the end of a stage that did not tell it itself."""
        self._selector = selectors.DefaultSelector()
        self._signals = Signals(self._selector)
        self._listener = listen(address)
        self._inode = address.stat().st_ino
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._open, self._idle_since = True, time.monotonic()

    def loop(self) -> None:
        while self._open or self._stages:
            ready = [key.fileobj for key, _ in self._selector.select(_TICK_SECONDS)]
            self._signals.heard(ready)
            self._see_off()
            if self._open and self._listener in ready:
                self._serve_one()
            if self._open and self._is_over():
                self._close()

    def _is_over(self) -> bool:
        if self._stages:
            self._idle_since = time.monotonic()
        idle = time.monotonic() - self._idle_since > self._idle_seconds
        return idle or self._signals.asked_to_end or not is_there(self._address, self._inode)

    def _close(self) -> None:
        """Take no more stages; whoever asks next starts another warm process."""
        self._open = False
        self._selector.unregister(self._listener)
        self._listener.close()
        if is_there(self._address, self._inode):
            self._address.unlink(missing_ok=True)

    def _serve_one(self) -> None:
        try:
            connection, _ = self._listener.accept()
            connection.settimeout(_PATIENCE_SECONDS)
            kept = is_same_user(connection) and self._answer(connection, *receive_ask(connection))
        except (OSError, ValueError) as error:
            print(f"an ask was not understood: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            return
        if not kept:
            connection.close()

    def _answer(self, connection: socket.socket, ask: Ask, handles: list[int]) -> bool:
        """Answer an ask; returns whether the connection is still needed."""
        try:
            if ask.action == "stop":
                self._close()
                send(connection, Answer(state="stopping"))
                return False
            refusal = self._refusal(ask)
            if refusal is not None:
                send(connection, Answer(state="refused", reason=refusal))
                return False
            asker, log, *kept = handles
            of_stage = child.Handles(asker, log, tuple(kept))
            pid = fork(lambda: child.run_stage(connection, ask, of_stage, self._loaded), self._forget)
        finally:
            for handle in handles:
                os.close(handle)
        self._stages[pid] = connection
        return True

    def _refusal(self, ask: Ask) -> str | None:
        changed = self._files.changed() or self._files.changed_library()
        if changed is not None:
            self._close()
            return f"{changed} has changed since the libraries were loaded"
        variable = surroundings.other(self._loaded.read, self._loaded.had, ask.environment)
        return variable and f"{variable} is not what it was when the libraries were loaded"

    def _forget(self) -> None:
        """In a child: close what is the warm process's."""
        self._signals.forget()
        os.close(self._lock)
        for thing in (self._listener, self._selector, *self._stages.values()):
            thing.close()

    def _see_off(self) -> None:
        for pid, code in ended_children():
            connection = self._stages.pop(pid, None)
            if connection is None:  # what a library had started while it was loaded
                continue
            with connection, suppress(OSError):  # nobody may be left who asked
                send(connection, Answer(state="ended", code=code))
            self._idle_since = time.monotonic()
