"""Usage in the database of the instance: runs are entered, and entered again, and asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import add
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from mloc_dagster.placement.ledger.database import Database, url_of
from mloc_dagster.usage import tables
from mloc_dagster.usage.entries import CPU, Ended, day_of, entries_of, queue_ms, retries, run_ms
from mloc_dagster.usage.periods import covering, periods_of

if TYPE_CHECKING:
    from dagster import DagsterInstance

By = Literal["owner", "project", "gpu", "day", "task", "stage"]
_Key = tuple[str, str, str, int]
"""Owner, project, device, day."""
_Column = Literal["owner", "project", "gpu"]
_BOTH = (tables.runs, tables.sums)
_STATUS = {"SUCCESS": "succeeded", "FAILURE": "failed", "CANCELED": "canceled"}
_PAGE = 500
_COLUMNS = ", ".join(tables.SUMS)
_ADDED = ", ".join(f"{name} = mloc_usage_levels.{name} + excluded.{name}" for name in tables.SUMS)
_ADD = sa.text(
    f"INSERT INTO mloc_usage_levels (level, period, series, {_COLUMNS}) "
    f"VALUES (:level, :period, :series, {', '.join(f':{name}' for name in tables.SUMS)}) "
    f"ON CONFLICT (level, period, series) DO UPDATE SET {_ADDED}"
)


@dataclass(frozen=True)
class Chosen:
    """What is asked for: an owner, a project, days (numbers of days since 1970-01-01 UTC), the last one included."""

    owner: str | None = None
    project: str | None = None
    first: int | None = None
    last: int | None = None


@dataclass(frozen=True)
class Total:
    """Sums; `device_us` and `cpu_us` in µs of a device and of a core, `queue_ms` and `run_ms` in milliseconds."""

    device_us: int = 0
    cpu_us: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    queue_ms: int = 0
    run_ms: int = 0
    succeeded: int = 0
    failed: int = 0
    canceled: int = 0
    started: int = 0
    retries: int = 0
    slo_met: int = 0
    slo_breached: int = 0

    def __add__(self, other: Total) -> Total:
        return Total(*map(add, vars(self).values(), vars(other).values()))

    def __neg__(self) -> Total:
        return Total(*(-one for one in vars(self).values()))


@dataclass(frozen=True)
class Totals:
    """Sums by device (empty: cores, tokens and the runs themselves); µs of devices by owner and by project."""

    by_gpu: dict[str, Total]
    by_owner: dict[str, int]
    by_project: dict[str, int]


class UsageTable:
    """The tables in one database; safe to use from many processes."""

    def __init__(self, url: str) -> None:
        self._database = Database(url, tables.metadata, tables.LOCK)

    @classmethod
    def of_instance(cls, instance: DagsterInstance) -> UsageTable:
        """Return the table of a Dagster instance: in its PostgreSQL, else in a SQLite file beside Dagster's."""
        return cls(url_of(instance, "usage"))

    def latest(self) -> float:
        """Return the latest change of a run that was entered, in seconds since the epoch; 0 when there is none."""
        with self._database.reading() as connection:
            return float(connection.scalar(sa.select(sa.func.max(tables.runs.c.updated))) or 0.0)

    def unknown(self, page: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
        """Return those of some runs that are not entered as they are now."""
        ids = [run_id for run_id, _ in page]
        query = sa.select(tables.runs.c.run_id, tables.runs.c.updated).where(tables.runs.c.run_id.in_(ids))
        with self._database.reading() as connection:
            known = {row.run_id: row.updated for row in connection.execute(query)}
        return [(run_id, updated) for run_id, updated in page if known.get(run_id) != updated]

    def enter(self, runs: Sequence[Ended]) -> int:
        """Enter runs that are over, in place of what was entered of them before; returns how many gave other sums."""
        if not runs:
            return 0
        with self._database.writing() as connection:
            ids = [run.run_id for run in runs]
            before = _sums(connection, ids)
            _forget(connection, ids)
            connection.execute(sa.insert(tables.runs), [_row(run) for run in runs])
            rows = [{"run_id": run.run_id, **vars(entry)} for run in runs for entry in entries_of(run)]
            if rows:
                connection.execute(sa.insert(tables.entries), rows)
            after = _sums(connection, ids)
            _add(connection, before, after)
        return sum(before.get(run_id) != after.get(run_id) for run_id in ids)

    def sum_up(self) -> None:
        """Make the sums by period anew from the entries; those of an earlier version go."""
        with self._database.writing() as connection:
            connection.execute(sa.text("DROP TABLE IF EXISTS mloc_usage_sums"))
            connection.execute(sa.delete(tables.sums))
            ids = list(connection.scalars(sa.select(tables.runs.c.run_id)))
            for start in range(0, len(ids), _PAGE):
                _add(connection, {}, _sums(connection, ids[start : start + _PAGE]))

    def lacks_sums(self) -> bool:
        """Whether there are runs, and no sums of them: an earlier version kept those elsewhere."""
        with self._database.reading() as connection:
            there = [connection.scalar(sa.select(sa.literal(1)).select_from(one).limit(1)) for one in _BOTH]
        return there == [1, None]

    def count(self) -> int:
        """Return how many runs are entered."""
        with self._database.reading() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(tables.runs)) or 0

    def missed_slo(self, since: float) -> int:
        """Return how many runs that changed since a time (seconds since the epoch) missed their service level."""
        of = tables.runs.c
        query = sa.select(sa.func.count()).select_from(tables.runs).where(of.updated >= since, of.slo_met.is_(False))
        with self._database.reading() as connection:
            return connection.scalar(query) or 0

    def spread(self, column: Literal["queue_ms", "run_ms"], bounds: Sequence[float]) -> list[int]:
        """Return how many runs took up to each bound (seconds), of those that began where that is what counts."""
        of = tables.runs.c
        within = [sa.func.sum(sa.case((of[column] <= bound * 1000, 1), else_=0)) for bound in bounds]
        query = sa.select(*within).select_from(tables.runs)
        with self._database.reading() as connection:
            row = connection.execute(query.where(of.started) if column == "run_ms" else query).one()
        return [int(value or 0) for value in row]

    def by_run(self, ids: Sequence[str]) -> dict[str, Total]:
        """Return the sums of single runs, as far as they are entered."""
        with self._database.reading() as connection:
            return {run_id: sum(sums.values(), Total()) for run_id, sums in _sums(connection, ids).items()}

    def totals(self, chosen: Chosen, wanted: Sequence[str] = tables.SUMS) -> Totals:
        """Return sums by device, and the device time of each owner and project.

        `wanted` are the sums that count, `device_us` first: over long times each one costs.
        """
        with self._database.reading() as connection:
            spans = _spans(connection, chosen)
            by_gpu = _grouped(connection, chosen, spans, ("gpu",), wanted)
            by_owner, by_project = (
                _grouped(connection, chosen, spans, (name,), ("device_us",)) for name in ("owner", "project")
            )
        return Totals(
            {row[0]: Total(**dict(zip(wanted, map(int, row[1:]), strict=True))) for row in by_gpu},
            {row[0]: int(row[1]) for row in by_owner},
            {row[0]: int(row[1]) for row in by_project},
        )

    def by_series(self, chosen: Chosen, column: _Column) -> dict[tuple[str, str], Total]:
        """Return sums by owner, project or device, each by device (empty: cores, tokens and the runs themselves)."""
        with self._database.reading() as connection:
            rows = _grouped(connection, chosen, _spans(connection, chosen), (column, "gpu"), tables.SUMS)
        return {(row[0], row[1]): Total(*map(int, row[2:])) for row in rows}

    def by_day(self, chosen: Chosen) -> dict[tuple[str, str], Total]:
        """Return sums by day (a number, as text) and device."""
        columns = [sa.func.sum(tables.sums.c[name]) for name in tables.SUMS]
        joined = tables.sums.join(tables.series, tables.sums.c.series == tables.series.c.id)
        query = sa.select(tables.sums.c.period, tables.series.c.gpu, *columns).select_from(joined)
        query = query.where(tables.sums.c.level == _level(chosen), tables.sums.c.period >= 0)
        query = _of(_within(query, tables.sums.c.period, chosen), tables.series, chosen)
        with self._database.reading() as connection:
            found = connection.execute(query.group_by(tables.sums.c.period, tables.series.c.gpu))
            return {(str(row[0]), row[1]): Total(*map(int, row[2:])) for row in found}

    def by_name(self, chosen: Chosen, column: Literal["task", "step"]) -> dict[tuple[str, str], Total]:
        """Return sums by task, or by stage, and device; those of runs (states, waits) only by task."""
        name = tables.runs.c.task if column == "task" else tables.entries.c.step
        columns = [sa.func.sum(tables.entries.c[one]) for one in tables.SUMS[:4]]
        joined = tables.entries.join(tables.runs, tables.entries.c.run_id == tables.runs.c.run_id)
        query = sa.select(name, tables.entries.c.gpu, *columns).select_from(joined)
        query = _of(_within(query, tables.entries.c.day, chosen), tables.runs, chosen)
        with self._database.reading() as connection:
            found = {
                (row[0], row[1]): Total(*map(int, row[2:]))
                for row in connection.execute(query.group_by(name, tables.entries.c.gpu))
            }
            if column == "task":
                for task, status, met, count, waited in connection.execute(_states(chosen)):
                    states = _of_runs(status, met, count, queue_ms=int(waited))
                    found[task, CPU] = found.get((task, CPU), Total()) + states
        return found


def _spans(connection: Connection, chosen: Chosen) -> list[tuple[int, int]]:
    """Spans of as few periods as there can be that make up the days that are asked for."""
    of = tables.sums.c
    days = sa.select(of.period).where(of.level == 0, of.period >= 0).limit(1)  # min and max would read all of them
    first, last = (connection.scalar(days.order_by(end)) for end in (of.period, of.period.desc()))
    return covering(chosen.first, chosen.last, (first, last)) if first is not None and last is not None else []


def _level(chosen: Chosen, columns: Sequence[str] = ()) -> int:
    """The level on which what is asked for is told apart, and nothing else."""
    by_owner = chosen.owner is not None or "owner" in columns
    by_project = chosen.project is not None or "project" in columns
    return by_owner * tables.BY_OWNER + by_project * tables.BY_PROJECT


def _grouped(
    connection: Connection, chosen: Chosen, spans: Iterable[tuple[int, int]], columns: Sequence[_Column],
    names: Sequence[str],
) -> list[tuple[Any, ...]]:  # fmt: skip
    """Sums over spans of periods by columns: first by series, of which there are few, then by what those are called."""
    of = tables.sums.c
    wanted = sa.or_(sa.false(), *(of.period.between(low, high) for low, high in spans))
    query = sa.select(of.series, *_added(of, names)).where(of.level == _level(chosen, columns), wanted)
    if chosen.owner is not None or chosen.project is not None:
        query = query.where(of.series.in_(_of(sa.select(tables.series.c.id), tables.series, chosen)))
    sums = query.group_by(of.series).cte("sums")
    by = [tables.series.c[name] for name in columns]
    joined = sums.join(tables.series, sums.c.series == tables.series.c.id)
    found = sa.select(*by, *_added(sums.c, names)).select_from(joined).group_by(*by)
    return [tuple(row) for row in connection.execute(found)]


def _added(of, names: Sequence[str]) -> list[sa.Label[int]]:
    return [sa.func.sum(of[name]).label(name) for name in names]


def _states(chosen: Chosen):
    of = tables.runs.c
    query = sa.select(of.task, of.status, of.slo_met, sa.func.count(), sa.func.sum(of.queue_ms))
    return _of(_within(query, of.day, chosen), tables.runs, chosen).group_by(of.task, of.status, of.slo_met)


def _within(query: sa.Select, day: sa.ColumnElement[int], chosen: Chosen) -> sa.Select:
    query = query.where(day >= chosen.first) if chosen.first is not None else query
    return query.where(day <= chosen.last) if chosen.last is not None else query


def _of(query: sa.Select, table: sa.Table, chosen: Chosen) -> sa.Select:
    query = query.where(table.c.owner == chosen.owner) if chosen.owner is not None else query
    return query.where(table.c.project == chosen.project) if chosen.project is not None else query


def _row(run: Ended) -> dict[str, str | int | float | bool | None]:
    told = {name: getattr(run, name) for name in ("run_id", "updated", "task", "owner", "project", "status")}
    finished = run.ended if run.ended is not None else run.updated
    met = None
    if run.slo_seconds is not None and run.status == "SUCCESS":
        met = finished - run.created <= run.slo_seconds
    times = {"day": day_of(finished), "queue_ms": queue_ms(run), "run_ms": run_ms(run)}
    return {**told, **times, "started": run.started is not None, "retries": retries(run), "slo_met": met}


def _of_runs(status: str, met: bool | None, count: int, **sums: int) -> Total:
    state = {_STATUS[status]: count} if status in _STATUS else {}
    return Total(slo_met=count if met else 0, slo_breached=count if met is False else 0, **state, **sums)


def _sums(connection: Connection, ids: Sequence[str]) -> dict[str, dict[_Key, Total]]:
    """What some runs add to each day, by run."""
    found: dict[str, dict[_Key, Total]] = defaultdict(lambda: defaultdict(Total))
    names: dict[str, tuple[str, str]] = {}
    for row in connection.execute(sa.select(tables.runs).where(tables.runs.c.run_id.in_(ids))):
        names[row.run_id] = row.owner, row.project
        sums = {"queue_ms": row.queue_ms, "run_ms": row.run_ms, "started": int(row.started), "retries": row.retries}
        found[row.run_id][row.owner, row.project, CPU, row.day] += _of_runs(row.status, row.slo_met, 1, **sums)
    for row in connection.execute(sa.select(tables.entries).where(tables.entries.c.run_id.in_(ids))):
        total = Total(row.device_us, row.cpu_us, row.prompt_tokens, row.completion_tokens)
        found[row.run_id][*names[row.run_id], row.gpu, row.day] += total
    return {run_id: dict(sums) for run_id, sums in found.items()}


def _forget(connection: Connection, ids: Sequence[str]) -> None:
    for table in (tables.entries, tables.runs):
        connection.execute(sa.delete(table).where(table.c.run_id.in_(ids)))


def _add(
    connection: Connection, before: Mapping[str, Mapping[_Key, Total]], after: Mapping[str, Mapping[_Key, Total]]
) -> None:
    """Bring the sums by period from what some runs had added before to what they add now."""
    change: dict[_Key, Total] = defaultdict(Total)
    for sums, sign in ((before, -1), (after, 1)):
        for of_run in sums.values():
            for key, total in of_run.items():
                change[key] += total if sign > 0 else -total
    moved: dict[tuple[int, int, tuple[str, str, str]], Total] = defaultdict(Total)
    for (owner, project, gpu, day), total in change.items():
        if total != Total():
            for level in tables.LEVELS:
                whose = owner if level & tables.BY_OWNER else "", project if level & tables.BY_PROJECT else "", gpu
                for period in periods_of(day):
                    moved[level, period, whose] += total
    numbers = _series(connection, {whose for _, _, whose in moved})
    rows = [
        {"level": level, "period": period, "series": numbers[whose], **vars(total)}
        for (level, period, whose), total in sorted(moved.items())
    ]
    if rows:
        connection.execute(_ADD, rows)


def _series(connection: Connection, wanted: set[tuple[str, str, str]]) -> dict[tuple[str, str, str], int]:
    query = sa.select(tables.series).where(tables.series.c.owner.in_({owner for owner, _, _ in wanted}))
    found = {(row.owner, row.project, row.gpu): row.id for row in connection.execute(query)}
    for owner, project, gpu in sorted(wanted - found.keys()):
        made = connection.execute(sa.insert(tables.series).values(owner=owner, project=project, gpu=gpu))
        assert made.inserted_primary_key is not None
        found[owner, project, gpu] = made.inserted_primary_key[0]
    return found
