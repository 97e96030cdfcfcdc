"""Runs that are over, read from Dagster's run storage and event log."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from dagster import AssetMaterialization, DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.storage.dagster_run import RunRecord
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.runs.schema import RunsTable
from dagster._core.storage.runs.sql_run_storage import SqlRunStorage
from sqlalchemy.exc import SQLAlchemyError

from mloc_dagster.placement.ledger.grant import Grant
from mloc_dagster.placement.queue.asked import SLO
from mloc_dagster.usage.entries import Ended, Kind, Moment
from mloc_dagster.usage.held import NOTHING, held_by, seat_of

OVER = (DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)
_log = logging.getLogger("mloc")
_PAGE = 500
_MOST_TOKENS = 1 << 44
_KEYS = 10_000
"""So many ids are looked up at a time: the storage sorts all runs for each look."""
_KINDS: dict[DagsterEventType, Kind] = {
    DagsterEventType.STEP_START: "start",
    DagsterEventType.STEP_RESTARTED: "start",
    DagsterEventType.STEP_UP_FOR_RETRY: "end",
    DagsterEventType.STEP_SUCCESS: "end",
    DagsterEventType.STEP_FAILURE: "end",
    DagsterEventType.ASSET_MATERIALIZATION: "tokens",
    DagsterEventType.ENGINE_EVENT: "seat",
}


def changed(instance: DagsterInstance, since: float) -> Iterator[list[tuple[str, float]]]:
    """Yield pages of runs that are over and were changed at or after a time: id and that time, first changes first."""
    storage = instance.run_storage
    assert isinstance(storage, SqlRunStorage)
    column, number = RunsTable.c.update_timestamp, RunsTable.c.id
    moment, last = datetime.fromtimestamp(since, UTC).replace(tzinfo=None), -1
    statuses = RunsTable.c.status.in_([status.value for status in OVER])
    while True:
        after = (column > moment) | ((column == moment) & (number > last))
        query = sa.select(number, RunsTable.c.run_id, column).where(statuses, column >= moment, after)
        with storage.connect() as connection:
            rows = connection.execute(query.order_by(column, number).limit(_KEYS)).all()
        if not rows:
            return
        found = [(row[1], row[2].replace(tzinfo=UTC).timestamp()) for row in rows]
        for start in range(0, len(found), _PAGE):
            yield found[start : start + _PAGE]
        last, moment = rows[-1][0], rows[-1][2]


def back(stamp: float, seconds: float) -> float:
    """Return a time so much earlier, no earlier than the epoch."""
    earliest = datetime(1970, 1, 2, tzinfo=UTC).timestamp()
    return max(earliest, stamp - timedelta(seconds=seconds).total_seconds())


def read(instance: DagsterInstance, pages: Sequence[tuple[str, float]]) -> list[Ended]:
    """Return runs by their ids, each with what its events tell; one that is gone or not over is left out."""
    updated = dict(pages)
    records = instance.get_run_records(RunsFilter(run_ids=list(updated)))
    return [
        _ended(instance, record, updated[record.dagster_run.run_id])
        for record in records
        if record.dagster_run.status in OVER
    ]


def bare(run: Ended) -> Ended:
    """Return a run without what it held and did: that it is over still counts."""
    return replace(run, held=NOTHING, moments=())


def _ended(instance: DagsterInstance, record: RunRecord, updated: float) -> Ended:
    """One run; what it held or did is left out where that cannot be read, for the others must go on."""
    run = record.dagster_run
    try:
        held = held_by(run)
        moments = tuple(_moments(instance, run.run_id)) if record.start_time is not None else ()
        until = _given_back(run, moments)
    except (SQLAlchemyError, OSError):  # the database, just now
        raise
    except Exception:
        _log.exception("run %s counts without what it held: its tags or events cannot be read", run.run_id)
        held, moments, until = NOTHING, (), None
    return Ended(
        run_id=run.run_id,
        task=run.tags.get("mloc/task") or run.job_name,
        owner=run.tags.get("mloc/owner") or "unknown",
        project=run.tags.get("mloc/project") or "default",
        status=run.status.value,
        created=record.create_timestamp.timestamp(),
        started=record.start_time,
        ended=record.end_time,
        held=held,
        held_until=until,
        moments=moments,
        updated=updated,
        slo_seconds=seconds_of(run.tags.get(SLO)),
    )


def _given_back(run: DagsterRun, moments: Sequence[Moment]) -> float | None:
    """When a run gave back what it held itself: when its first stage took a worker of its own; without the queue it
    had nothing to begin with."""
    grant = Grant.of_run(run)
    first = next((moment.at for moment in moments if moment.kind == "seat"), None)
    if first is None or grant is None:
        return None if first is None else 0.0
    return first if grant.split else None


def _moments(instance: DagsterInstance, run_id: str) -> Iterator[Moment]:
    storage = instance.event_log_storage
    if isinstance(storage, SqliteEventLogStorage) and not os.path.exists(storage.path_for_shard(run_id)):
        return  # its events are gone, and to look for them would make a database
    told: set[tuple[str, str]] = set()
    for record in instance.get_records_for_run(run_id, of_type=set(_KINDS)).records:
        entry = record.event_log_entry
        kind = _KINDS[entry.get_dagster_event().event_type]
        step = (entry.step_key or "").replace("__", "/")
        if kind == "seat":
            held = seat_of(entry.get_dagster_event()) if step else None
            if held is not None:
                yield Moment(step, kind, entry.timestamp, held=held)
        elif kind != "tokens":
            yield Moment(step, kind, entry.timestamp)
        elif (made := entry.asset_materialization) is not None and _made_here(made, run_id):
            result = step, str(_value(made, "digest"))
            if result not in told:  # a further attempt finds it finished and tells of it again
                told.add(result)
                yield Moment(step, kind, entry.timestamp, _tokens(made, "prompt"), _tokens(made, "completion"))


def _made_here(made: AssetMaterialization, run_id: str) -> bool:
    """Whether a result cost this run its tokens: not one that was reused, or that an earlier run of the task made."""
    return "reused_from" not in made.metadata and _value(made, "run_id") == run_id


def _tokens(made: AssetMaterialization, name: str) -> int:
    value = _value(made, f"usage/{name}_tokens")
    return int(value) if isinstance(value, (int, float)) and 0 <= value <= _MOST_TOKENS else 0


def _value(made: AssetMaterialization, name: str) -> object:
    found = made.metadata.get(name)
    return found.value if found else None


def seconds_of(text: str | None) -> float | None:
    """Return the seconds that a tag gives; None for one that is absent or gives none."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
