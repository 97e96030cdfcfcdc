"""Tasks that were accepted and are not runs of Dagster yet, in the database of the instance."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row, make_url

from mloc_dagster.store import connections

if TYPE_CHECKING:
    from dagster import DagsterInstance

LANES = 2
"""Feeders; each takes the tasks of its own lane, so that no two ever take the same one."""
State = Literal["waiting", "feeding", "canceled", "refused"]
_KEPT_SECONDS = 7 * 86_400.0
"""So long it is told of a task that was cancelled here, or that no run could be made of."""

_metadata = sa.MetaData()
_table = sa.Table(
    "mloc_intake", _metadata,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run_id", sa.String(36), nullable=False, unique=True),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("task", sa.String(200), nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("job", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("base", sa.Text, nullable=False),
    sa.Column("fresh", sa.Boolean, nullable=False),
    sa.Column("tags", sa.Text, nullable=False),
    sa.Column("accepted_at", sa.Float, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Index("mloc_intake_state", "state", "position"),
    sqlite_autoincrement=True,
)  # fmt: skip


@dataclass(frozen=True)
class Accepted:
    """One task. `run_id` is that of the run to be; `base` the folder that relative paths start from; times in seconds
    since the epoch."""

    run_id: str
    task: str
    owner: str
    project: str
    job: str
    text: str
    name: str
    base: Path
    fresh: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)
    accepted_at: float = field(default_factory=time.time)
    state: State = "waiting"
    error: str = ""
    position: int = 0


class Intake:
    """The table. What was added is on the disk when `add` returns."""

    def __init__(self, url: str) -> None:
        self._postgres = make_url(url).get_backend_name() == "postgresql"
        pragmas = ("journal_mode=WAL", "synchronous=FULL")  # what was answered with 201 survives a power failure
        self._engine = connections.postgres(url) if self._postgres else connections.sqlite(url, *pragmas)
        with self._writing() as connection:
            _metadata.create_all(connection)

    @classmethod
    def of_instance(cls, instance: DagsterInstance) -> Intake:
        """Return the intake of a Dagster instance: in its PostgreSQL, else in a SQLite file beside Dagster's."""
        found = getattr(instance.run_storage, "postgres_url", None)
        return cls(found or f"sqlite:///{Path(instance.root_directory) / 'intake.db'}")

    def add(self, tasks: Sequence[Accepted]) -> None:
        """Take tasks in, all or none."""
        with self._writing() as connection:
            connection.execute(sa.insert(_table), [_values(task) for task in tasks])

    def claim(self, lane: int, most: int) -> list[Accepted]:
        """Return the first tasks of a lane that wait, or that its feeder had begun with when it was killed."""
        mine = (_table.c.position % LANES == lane) & _table.c.state.in_(("waiting", "feeding"))
        query = sa.select(_table).where(mine).order_by(_table.c.position).limit(most)
        with self._engine.connect() as connection:
            if not connection.execute(query).first():
                return []
        with self._writing() as connection:
            found = [_accepted(row) for row in connection.execute(query)]
            positions = [task.position for task in found]
            connection.execute(sa.update(_table).where(_table.c.position.in_(positions)).values(state="feeding"))
        return found

    def done(self, run_ids: Sequence[str]) -> None:
        """Forget tasks that are runs of Dagster now; those that were refused meanwhile stay."""
        old = (_table.c.accepted_at < time.time() - _KEPT_SECONDS) & _table.c.state.in_(("canceled", "refused"))
        fed = _table.c.run_id.in_(run_ids) & (_table.c.state == "feeding")
        with self._writing() as connection:
            connection.execute(sa.delete(_table).where(fed | old))

    def refuse(self, run_id: str, error: str) -> None:
        """Note that no run can be made of a task, and why."""
        with self._writing() as connection:
            connection.execute(
                sa.update(_table).where(_table.c.run_id == run_id).values(state="refused", error=error[:4000])
            )

    def cancel(self, run_id: str) -> bool:
        """Cancel a task that waits; returns whether it did."""
        mine = (_table.c.run_id == run_id) & (_table.c.state == "waiting")
        with self._writing() as connection:
            return connection.execute(sa.update(_table).where(mine).values(state="canceled")).rowcount == 1

    def get(self, run_id: str) -> Accepted | None:
        """Return one task, or None when it is not here (any more)."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(_table).where(_table.c.run_id == run_id)).first()
        return _accepted(row) if row else None

    def list(
        self,
        states: Sequence[State],
        owner: str | None,
        project: str | None,
        limit: int,
        before: int | None = None,
        *,
        tag: str | None = None,
        since: float | None = None,
    ) -> list[Accepted]:
        """Return tasks in any of the states, newest first.

        `before`: only those that came before this position; `tag`: that bear this tag; `since`: accepted then or later.
        """
        query = sa.select(_table).where(_table.c.state.in_(states)).order_by(_table.c.position.desc()).limit(limit)
        query = query.where(_table.c.owner == owner) if owner else query
        query = query.where(_table.c.project == project) if project else query
        query = query.where(_table.c.position < before) if before else query
        query = query.where(_table.c.tags.contains(json.dumps(tag), autoescape=True)) if tag else query
        query = query.where(_table.c.accepted_at >= since) if since is not None else query
        with self._engine.connect() as connection:
            return [_accepted(row) for row in connection.execute(query)]

    def count(self) -> int:
        """Return how many tasks are no runs yet and will be."""
        there = _table.c.state.in_(("waiting", "feeding"))
        with self._engine.connect() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(_table).where(there)) or 0

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._engine.connect() as connection:
            if self._postgres:
                with connection.execution_options(isolation_level="READ COMMITTED").begin():
                    yield connection
                return
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.exec_driver_sql("ROLLBACK")
                raise
            connection.exec_driver_sql("COMMIT")


def _values(task: Accepted) -> dict[str, str | bool | float]:
    values = {name: getattr(task, name) for name in _table.columns.keys() if name != "position"}  # noqa: SIM118
    return {**values, "base": str(task.base), "tags": json.dumps(dict(task.tags))}


def _accepted(row: Row) -> Accepted:
    values = dict(row._mapping)
    return Accepted(**{**values, "base": Path(values["base"]), "tags": json.loads(values["tags"])})
