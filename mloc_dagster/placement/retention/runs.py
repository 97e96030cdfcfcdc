"""Runs and events of Dagster that are old; the newest success of each task stays."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from mloc_dagster.placement.queue.asked import task_key
from mloc_dagster.placement.retention.found import DAY, Found, size_of
from mloc_dagster.store.home import Home

if TYPE_CHECKING:
    from dagster import DagsterInstance, RunRecord

_PAGE = 200


def old_runs(instance: DagsterInstance, home: Home, days: float) -> Iterator[Found]:
    """Yield runs that ended so many days ago, but the newest success of each task; sizes are those of their logs."""
    from dagster import DagsterRunStatus, RunsFilter

    kept: set[str] = set()
    for record in _records(instance, RunsFilter(statuses=[DagsterRunStatus.SUCCESS])):
        task = task_key(record.dagster_run.tags)
        if task not in kept:
            kept |= {task, record.dagster_run.run_id}
    before = datetime.fromtimestamp(time.time() - days * DAY, UTC)
    for record in _records(instance, RunsFilter(updated_before=before)):
        run = record.dagster_run
        if run.is_finished and run.run_id not in kept:
            size = sum(size_of(path) for path in home.logs.glob(f"{run.run_id}*"))
            why = f"{task_key(run.tags)} ended over {days:g} days ago"
            yield Found("runs", run.run_id[:8], size, why, partial(_remove, instance, home, run.run_id))


def _records(instance: DagsterInstance, chosen) -> Iterator[RunRecord]:
    cursor = None
    while page := instance.get_run_records(chosen, limit=_PAGE, cursor=cursor):
        yield from page
        cursor = page[-1].dagster_run.run_id


def _remove(instance: DagsterInstance, home: Home, run_id: str) -> int:
    run = instance.get_run_by_id(run_id)
    if run is None or not run.is_finished:
        return 0
    logs = list(home.logs.glob(f"{run_id}*"))
    size = sum(map(size_of, logs))
    instance.delete_run(run_id)
    for path in logs:
        path.unlink(missing_ok=True)
    return size
