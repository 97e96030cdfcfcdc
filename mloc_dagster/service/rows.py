"""Tasks as the answers tell of them: accepted ones, and runs of Dagster."""

from __future__ import annotations

from collections.abc import Mapping

from dagster import DagsterRunStatus
from dagster._core.storage.dagster_run import RunRecord

from mloc_dagster.client.shapes import Task
from mloc_dagster.definitions.execution import REPLAY_OF, TASK_ID
from mloc_dagster.placement.failures.letters import cause_of
from mloc_dagster.placement.queue.asked import WAITING
from mloc_dagster.service.intake import Accepted, State

ACCEPTED = "ACCEPTED"
STATES: Mapping[str, tuple[State, ...]] = {
    ACCEPTED: ("waiting", "feeding"), "CANCELED": ("canceled",), "FAILURE": ("refused",),
}  # fmt: skip
"""States of the intake by the status that is told of them."""
STATUSES = (ACCEPTED, *(status.value for status in DagsterRunStatus))
_STATUS = {state: status for status, states in STATES.items() for state in states}


def row_of(one: Accepted) -> Task:
    """Tell of a task that is no run yet."""
    told: Task = {
        "id": one.run_id,
        "run_id": one.run_id,
        "task_id": one.run_id,
        "job": one.job,
        "task": one.task,
        "owner": one.owner,
        "project": one.project,
        "status": _STATUS[one.state],
        "created": one.accepted_at,
        "started": None,
        "ended": None,
    }
    if one.error:
        told["error"] = one.error
    elif one.state in STATES[ACCEPTED]:
        told["waiting"] = "accepted; it becomes a run of the queue in a moment"
    return told


def row_of_run(record: RunRecord) -> Task:
    """Tell of a run."""
    run = record.dagster_run
    told: Task = {
        "id": run.run_id,
        "run_id": run.run_id,
        "task_id": run.tags.get(TASK_ID) or run.root_run_id or run.run_id,
        "job": run.job_name,
        "task": run.tags.get("mloc/task") or run.job_name,
        "owner": run.tags.get("mloc/owner"),
        "project": run.tags.get("mloc/project"),
        "status": run.status.value,
        "created": record.create_timestamp.timestamp(),
        "started": record.start_time,
        "ended": record.end_time,
    }
    if run.status is DagsterRunStatus.QUEUED and run.tags.get(WAITING):
        told["waiting"] = run.tags[WAITING]
    if run.status is DagsterRunStatus.FAILURE:
        told["cause"] = cause_of(run)
    if replayed := run.tags.get(REPLAY_OF):
        told["replay_of"] = replayed
    return told
