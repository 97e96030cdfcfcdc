"""The tables of the ledger, and transactions on them: on SQLite and on PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.engine import Connection, make_url

from mloc_dagster.store import connections

if TYPE_CHECKING:
    from dagster import DagsterInstance

_LOCK = 0x6D6C6F63  # "mloc"

metadata = sa.MetaData()
workers = sa.Table(
    "mloc_workers", metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("host", sa.String(200), nullable=False),
    sa.Column("cpu", sa.BigInteger, nullable=False),
    sa.Column("memory", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("load", sa.Float, nullable=False),
    sa.Column("seen_at", sa.Float, nullable=False),
)  # fmt: skip
devices = sa.Table(
    "mloc_devices", metadata,
    sa.Column("worker", sa.String(200), primary_key=True),
    sa.Column("device", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("memory", sa.BigInteger, nullable=False),
)  # fmt: skip
leases = sa.Table(
    "mloc_leases", metadata,
    sa.Column("token", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run_id", sa.String(255), nullable=False, unique=True),
    sa.Column("owner", sa.String(200), nullable=False),
    sa.Column("worker", sa.String(200), nullable=False, index=True),
    sa.Column("need", sa.Text, nullable=False),
    sa.Column("devices", sa.Text, nullable=False),
    sa.Column("expected", sa.Float),
    sa.Column("taken_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
    sqlite_autoincrement=True,
)  # fmt: skip
waits = sa.Table(
    "mloc_stage_waits", metadata,
    sa.Column("run_id", sa.String(255), primary_key=True),
    sa.Column("need", sa.Text, nullable=False),
    sa.Column("worker", sa.String(200), nullable=False),
    sa.Column("first", sa.String(200), nullable=False),
    sa.Column("since", sa.Float, nullable=False),
    sa.Column("until", sa.Float, nullable=False),
)  # fmt: skip
state = sa.Table(
    "mloc_state", metadata,
    sa.Column("key", sa.String(50), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)  # fmt: skip


def url_of(instance: DagsterInstance, name: str = "ledger") -> str:
    """Return where tables of ours are: in the instance's own PostgreSQL, else in a SQLite file beside Dagster's."""
    found = getattr(instance.run_storage, "postgres_url", None)
    return found or f"sqlite:///{Path(instance.root_directory) / f'{name}.db'}"


class Database:
    """Short transactions, over connections that the process keeps.

    `lock` is the number of the PostgreSQL lock that those who write these tables take.
    """

    def __init__(self, url: str, tables: sa.MetaData = metadata, lock: int = _LOCK) -> None:
        self._lock = lock
        self._postgres = make_url(url).get_backend_name() == "postgresql"
        pragmas = ("journal_mode=WAL", "synchronous=NORMAL")
        self._engine = connections.postgres(url) if self._postgres else connections.sqlite(url, *pragmas)
        with self.writing() as connection:
            tables.create_all(connection)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a connection that sees one state of all tables."""
        with self._engine.connect() as connection:
            if self._postgres:
                with connection.execution_options(isolation_level="REPEATABLE READ").begin():
                    yield connection
            else:
                with _sqlite_transaction(connection, "BEGIN"):
                    yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Give the only connection that writes: all others wait, so two claims cannot cross, and none can deadlock."""
        with self._engine.connect() as connection:
            if self._postgres:
                with connection.execution_options(isolation_level="READ COMMITTED").begin():
                    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({self._lock})")
                    yield connection
            else:
                with _sqlite_transaction(connection, "BEGIN IMMEDIATE"):
                    yield connection

    def now(self, connection: Connection) -> float:
        """Seconds since the epoch by one clock for all who use this database."""
        if not self._postgres:
            return time.time()
        return float(connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())").scalar_one())


@contextmanager
def _sqlite_transaction(connection: Connection, begin: str) -> Iterator[None]:
    connection.exec_driver_sql(begin)
    try:
        yield
    except BaseException:
        connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")
