"""The event log: one database a run, and an index over all runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import sqlalchemy
from dagster import EventLogEntry
from dagster._core.storage.event_log import SqliteEventLogStorage
from sqlalchemy.engine import Connection
from sqlalchemy.pool import NullPool

from mloc_dagster.store.remembered import RememberedEvents
from mloc_dagster.store.sqlite.engines import Engines
from mloc_dagster.store.sqlite.template import create_from_template


class PooledEventLogStorage(RememberedEvents, SqliteEventLogStorage):
    """Stock storage over connections that are kept; new databases come from a template."""

    def __init__(self, base_dir: str, engines: Engines) -> None:
        self._engines = engines
        self._prepared: set[str] = set()
        super().__init__(base_dir)

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        path = Path(self.path_for_shard(shard))
        if shard not in self._prepared or not path.exists():
            self._prepare(path)
            self._prepared.add(shard)
        with self._engines.connect(path) as connection:
            yield connection

    def store_event(self, event: EventLogEntry) -> None:
        """Store an event; the file's time tells watchers, which do not look at the write-ahead log."""
        super().store_event(event)
        with suppress(OSError):
            os.utime(self.path_for_shard(event.run_id))

    def dispose(self) -> None:
        """Stop watching and close all connections."""
        super().dispose()
        self._engines.close()

    def _prepare(self, path: Path) -> None:
        """Make the database, or finish one that another process has begun to make in the stock way."""
        if not path.exists():
            return create_from_template(path)
        with self._engines.connect(path) as connection:
            whole = sqlalchemy.inspect(connection).has_table("alembic_version")
        if not whole:
            self._initdb(sqlalchemy.create_engine(f"sqlite:///{path}", poolclass=NullPool))
