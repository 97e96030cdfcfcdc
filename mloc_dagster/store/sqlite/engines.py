"""Engines that keep their connections: one a database file, the most recently used ones, safe across fork."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from sqlalchemy import create_engine, event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.util import LRUCache

Synchronous = Literal["normal", "full"]
_MOST = 32
"""So many databases are held open; a web server looks into thousands of runs."""


class _Compiled(LRUCache):
    """Statements in their SQL form, for all engines: a new run's database needs the same ones.

    SQLAlchemy's key begins with the engine's dialect; these are all alike, so it does not count.
    """

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(key[1:], default)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key[1:], value)


_compiled = _Compiled(1000)


class _Open(NamedTuple):
    engine: Engine
    inode: int


class Engines:
    """Pooled engines by database file."""

    def __init__(self, synchronous: Synchronous) -> None:
        self._synchronous = synchronous
        self._open: OrderedDict[Path, _Open] = OrderedDict()
        self._lock = threading.Lock()
        _all.add(self)

    @contextmanager
    def connect(self, path: Path) -> Iterator[Connection]:
        """Give a connection inside a transaction, which is committed at the end of the block."""
        with self._engine(path).connect() as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Close all connections; the last process to do so writes the log into the database file."""
        with self._lock:
            for found in self._open.values():
                found.engine.dispose()
            self._open.clear()

    def left_behind(self) -> None:
        """Let go of the connections of the process that forked this one, without closing them.

        They are closed before a fork, except those that another thread is using just then. SQLite's locks belong to
        the parent, and a connection must not be used or closed by another process
        (https://sqlite.org/howtocorrupt.html#_carrying_an_open_database_connection_across_a_fork_).
        """
        self._lock = threading.Lock()
        _inherited.extend(found.engine for found in self._open.values())
        self._open = OrderedDict()

    def _engine(self, path: Path) -> Engine:
        inode = _inode(path)
        with self._lock:
            found = self._open.pop(path, None)
            if found is not None and found.inode != inode:  # the file was removed, perhaps made anew, by someone else
                found.engine.dispose()
                found = None
            if found is None:
                found = _Open(self._new(path), _inode(path))
            self._open[path] = found
            while len(self._open) > _MOST:
                self._open.popitem(last=False)[1].engine.dispose()
        return found.engine

    def _new(self, path: Path) -> Engine:
        arguments = {"timeout": SQLITE_BUSY_TIMEOUT_SECONDS, "check_same_thread": False}
        path.touch()
        engine = create_engine(f"sqlite:///{path}", connect_args=arguments, pool_size=2, max_overflow=-1)
        level = self._synchronous.upper()
        event.listen(engine, "connect", lambda raw, _: raw.execute(f"PRAGMA synchronous={level}").close())
        return engine.execution_options(compiled_cache=_compiled)


def close_all() -> None:
    """Close the connections of all storages of this process, so that it can be forked; they open again when used."""
    for engines in list(_all):
        engines.close()


def _inode(path: Path) -> int:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return 0


def _after_fork() -> None:
    for engines in list(_all):
        engines.left_behind()


_all: weakref.WeakSet[Engines] = weakref.WeakSet()
_inherited: list[Engine] = []
os.register_at_fork(before=close_all, after_in_child=_after_fork)
