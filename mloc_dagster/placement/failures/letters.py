"""Dead letters: runs that failed for good. They are read from the run storage; nothing else is kept of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.storage.dagster_run import RunRecord
from dagster._core.storage.tags import PARENT_RUN_ID_TAG, RETRY_NUMBER_TAG

from mloc_dagster.placement.failures.cause import CAUSE, Cause
from mloc_dagster.placement.failures.faults import StepFault, faults_of

TASK = "mloc/task"
_PAGE = 200


@dataclass(frozen=True)
class DeadLetter:
    """A run that failed and that nobody has done again; `failed_at` in seconds since the epoch."""

    run_id: str
    task: str
    owner: str
    stage: str
    cause: str
    reason: str
    """One line."""
    failed_at: float
    attempts: int
    """At the step that failed, or at the run when its worker was lost; those of earlier runs included."""


def dead_letters(instance: DagsterInstance, limit: int | None = None, cause: Cause | None = None) -> list[DeadLetter]:
    """Return dead letters, newest first, `limit` at most.

    A failed run is one unless a later run was made from it, which then stands for it, or its job has succeeded since.
    """
    found: list[DeadLetter] = []
    for record in _failed(instance, cause):
        if limit is not None and len(found) >= limit:
            break
        found.append(_letter(instance, record))
    return found


def cause_of(run: DagsterRun) -> str | None:
    """Return why a run failed; one that was ended without a word, such as by the UI, has failed for inner reasons."""
    if run.status is not DagsterRunStatus.FAILURE:
        return None
    return run.tags.get(CAUSE) or Cause.INTERNAL.value


def _failed(instance: DagsterInstance, cause: Cause | None) -> Iterator[RunRecord]:
    succeeded: dict[str, float] = {}
    cursor: str | None = None
    while True:
        chosen = RunsFilter(statuses=[DagsterRunStatus.FAILURE])
        page = instance.get_run_records(chosen, limit=_PAGE, cursor=cursor)
        if not page:
            return
        cursor = page[-1].dagster_run.run_id
        ids = [record.dagster_run.run_id for record in page]
        continued = {run.parent_run_id for run in instance.get_runs(RunsFilter(tags={PARENT_RUN_ID_TAG: ids}))}
        for record in page:
            run = record.dagster_run
            if TASK not in run.tags or run.run_id in continued or (cause and cause_of(run) != cause):
                continue
            if run.job_name not in succeeded:
                succeeded[run.job_name] = _last_success(instance, run.job_name)
            if succeeded[run.job_name] < record.create_timestamp.timestamp():
                yield record


def _last_success(instance: DagsterInstance, job_name: str) -> float:
    chosen = RunsFilter(job_name=job_name, statuses=[DagsterRunStatus.SUCCESS])
    latest = instance.get_run_records(chosen, limit=1)
    return latest[0].create_timestamp.timestamp() if latest else 0.0


def _letter(instance: DagsterInstance, record: RunRecord) -> DeadLetter:
    run = record.dagster_run
    faults = faults_of(instance, run)
    first = faults[0] if faults else StepFault("run", "", None, 1)
    return DeadLetter(
        run_id=run.run_id,
        task=run.tags[TASK],
        owner=run.tags.get("mloc/owner", "-"),
        stage=first.step.rpartition("/")[2],
        cause=first.cause or cause_of(run) or Cause.INTERNAL.value,
        reason=" ".join(first.message.split("\n")[0].split()),
        failed_at=record.end_time or record.update_timestamp.timestamp(),
        attempts=first.attempts + retries_of(run.tags),
    )


def retries_of(tags: Mapping[str, str]) -> int:
    """Return how many attempts came before a run; a tag that is no number is none, for anyone sets tags."""
    text = tags.get(RETRY_NUMBER_TAG, "")
    return int(text) if text.isdecimal() and len(text) < 10 else 0
