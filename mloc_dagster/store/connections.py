"""Connections that a process keeps, one or two a database for all that it does there; safe across fork."""

from __future__ import annotations

import os
import time
from typing import Any
from weakref import WeakValueDictionary

from sqlalchemy import create_engine, event
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import DisconnectionError

_KEPT, _MOST_MORE = 2, 20
_RECYCLE_SECONDS = 3600
_BUSY_SECONDS = 60
_UTC = "-c timezone=UTC"
"""Dagster stores times as `timestamp` without a zone: the server would turn them into the local time of its own."""
_ASK_AFTER_SECONDS = 5.0
"""A connection that rested for so long is asked whether it still stands before it is used."""

_engines: WeakValueDictionary[str, Engine] = WeakValueDictionary()
_inherited: list[Engine] = []


def postgres(url: str) -> Engine:
    """Return this process's engine for a PostgreSQL database; a statement outside a transaction commits at once."""
    place = make_url(url).set(drivername="postgresql+psycopg2")  # SQLAlchemy 2.1 takes psycopg 3 by default
    key = place.render_as_string(hide_password=False)
    engine = _engines.get(key) or _new_postgres(key)
    _engines[key] = engine
    return engine


def sqlite(url: str, *pragmas: str) -> Engine:
    """Return this process's engine for a SQLite file; transactions are begun by whoever uses it, not by the driver."""
    key = f"{url}#{pragmas}"
    engine = _engines.get(key) or _new_sqlite(url, pragmas)
    _engines[key] = engine
    return engine


def close_all() -> None:
    """Close the connections that rest; they open again when used."""
    for engine in list(_engines.values()):
        engine.dispose()


def _new_sqlite(url: str, pragmas: tuple[str, ...]) -> Engine:
    arguments = {"timeout": _BUSY_SECONDS, "check_same_thread": False}
    engine = create_engine(url, pool_size=_KEPT, max_overflow=-1, connect_args=arguments)
    event.listen(engine, "connect", lambda raw, _: _prepare(raw, pragmas))
    return engine


def _prepare(raw: Any, pragmas: tuple[str, ...]) -> None:
    raw.isolation_level = None
    for pragma in pragmas:
        raw.execute(f"PRAGMA {pragma}").close()


def _new_postgres(url: str) -> Engine:
    given = make_url(url).query.get("options", ())
    options = " ".join([*([given] if isinstance(given, str) else given), _UTC])
    engine = create_engine(
        url, isolation_level="AUTOCOMMIT", pool_size=_KEPT, max_overflow=_MOST_MORE, pool_recycle=_RECYCLE_SECONDS,
        connect_args={"connect_timeout": 10, "options": options},
    )  # fmt: skip
    event.listen(engine, "checkin", _note)
    event.listen(engine, "checkout", lambda raw, record, _: _check(engine, raw, record))
    return engine


def _note(_raw: Any, record: Any) -> None:
    record.info["rests_since"] = time.monotonic()


def _check(engine: Engine, raw: Any, record: Any) -> None:
    if time.monotonic() - record.info.get("rests_since", time.monotonic()) < _ASK_AFTER_SECONDS:
        return
    try:
        engine.dialect.do_ping(raw)
    except engine.dialect.loaded_dbapi.Error as error:  # such as after a restart of the server
        raise DisconnectionError(str(error)) from error


def _close_files() -> None:
    """Before a fork: no connection to a SQLite file may be taken along (sqlite.org/howtocorrupt.html, section 2.6)."""
    for engine in list(_engines.values()):
        if engine.dialect.name == "sqlite":
            engine.dispose()


def _leave_behind() -> None:
    """In a child: let go of what its parent has open, without closing it."""
    _inherited.extend(_engines.values())
    for engine in list(_engines.values()):
        engine.dispose(close=False)


os.register_at_fork(before=_close_files, after_in_child=_leave_behind)
