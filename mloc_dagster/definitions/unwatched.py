"""Stages that go on elsewhere for runs that are over, since who watched them was killed, are ended."""

from __future__ import annotations

import time
from functools import partial

from dagster import DagsterInstance, RunsFilter
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._core.storage.tags import ROOT_RUN_ID_TAG

from mloc_dagster.placement.remote.holding import give_up_unwatched
from mloc_dagster.store.home import Home

_NEXT_SECONDS = 60.0
"""So long after the end of a run its next attempt may still be made, which goes on with what the run has begun."""


def end_unwatched(instance: DagsterInstance, home: Home) -> int:
    """End them, and return how many stages that were; each sees within seconds that nobody holds its work."""
    return give_up_unwatched(home, partial(_is_over, instance))


def _is_over(instance: DagsterInstance, run_id: str) -> bool:
    record = instance.get_run_record_by_id(run_id)
    if record is None:
        return True
    run = record.dagster_run
    ended = record.end_time or record.update_timestamp.timestamp()
    if not run.is_finished or time.time() - ended < _NEXT_SECONDS:
        return False
    root = run.root_run_id or run.run_id
    going_on = RunsFilter(statuses=list(NOT_FINISHED_STATUSES), tags={ROOT_RUN_ID_TAG: root})
    return not instance.get_run_ids(going_on, limit=1)
