"""Runs done again from what they had finished: on request, or because their worker was lost."""

from __future__ import annotations

import os
import time
from pathlib import Path
from uuid import UUID, uuid5

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.errors import DagsterRunAlreadyExists
from dagster._core.storage.tags import PARENT_RUN_ID_TAG, PRIORITY_TAG, RETRY_NUMBER_TAG, ROOT_RUN_ID_TAG
from dagster_shared.error import DagsterError

from mloc_dagster.definitions.assets import build_job
from mloc_dagster.definitions.execution import REPLAY_OF, TASK_ID
from mloc_dagster.definitions.repository import TaskFiles
from mloc_dagster.placement.failures.cause import ATTEMPTS, CAUSE, Cause, backoff_seconds
from mloc_dagster.placement.failures.letters import retries_of
from mloc_dagster.placement.launcher.launcher import CANCEL, task_specs_of
from mloc_dagster.placement.launcher.workers import LAUNCHER, WORKER, only_holder
from mloc_dagster.placement.ledger.grant import LEASE, Grant
from mloc_dagster.placement.queue.asked import AVOID, NOT_BEFORE, WAITING
from mloc_dagster.plan import Plan
from mloc_dagster.spec import SpecError
from mloc_dagster.store.home import Home

_OF_ONE_RUN = {CAUSE, ATTEMPTS, CANCEL, LAUNCHER, WORKER, LEASE, WAITING, REPLAY_OF, NOT_BEFORE, AVOID}
"""Tags that say something of one run and not of its task."""
_SUBMIT_SECONDS = 10.0
"""How long another process may take to make and submit the next attempt of a run."""
_AGAIN = (DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)


class ReplayRefused(Exception):
    """A run that cannot be done again: what is in the way, and the way out."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.hint = hint


def replay(instance: DagsterInstance, run: DagsterRun) -> str:
    """Start a run again that failed or was cancelled, with the task file as it was; returns the new run's id.

    Stages that it had finished are not done again. Raises ReplayRefused.
    """
    short = run.run_id[:8]
    if run.status not in _AGAIN:
        how = "cancel it first, or wait" if not run.is_finished else "mloc run FILE --fresh does a whole task again"
        raise ReplayRefused(f"{short} is {run.status.value}; only what failed or was cancelled is replayed", how)
    before = instance.get_runs(RunsFilter(tags={PARENT_RUN_ID_TAG: run.run_id}))
    for one in before:
        if one.status is DagsterRunStatus.NOT_STARTED:  # who made it was killed before it was submitted
            instance.submit_run(one.run_id, None)  # pyright: ignore[reportArgumentType]
            return one.run_id
        if one.status not in _AGAIN:
            hint = f"see: mloc show {one.run_id[:8]}"
            raise ReplayRefused(f"{short} has been replayed already: {one.run_id[:8]} is {one.status.value}", hint)
    run_id = str(uuid5(UUID(run.run_id), f"replay {len(before)}"))
    try:
        return _again(instance, run, _plan(run), run_id, {})
    except DagsterRunAlreadyExists:
        hint = f"see: mloc show {run_id[:8]}"
        raise ReplayRefused(f"{short} is being replayed at this moment, as {run_id[:8]}", hint) from None


def retry_lost(instance: DagsterInstance, run_id: str) -> str | None:
    """Give a run that has lost its worker another attempt, unless it has had `retry.max_retries` of them.

    Whoever notices may call this, and as often as they like: there is one next attempt. Returns its id, or None.
    """
    run = instance.get_run_by_id(run_id)
    if run is None or run.status is not DagsterRunStatus.FAILURE or not _lost_itself(run):
        return None
    next_id = next_attempt_id(run_id)
    with only_holder(Home.current(), f"next-of-{run_id}", patience=_SUBMIT_SECONDS) as alone:
        return _next_attempt(instance, run, next_id) if alone else next_id


def _next_attempt(instance: DagsterInstance, run: DagsterRun, next_id: str) -> str | None:
    there = instance.get_run_by_id(next_id)
    if there is not None:
        if there.status is DagsterRunStatus.NOT_STARTED:  # who made it was killed before it was submitted
            instance.submit_run(next_id, None)  # pyright: ignore[reportArgumentType] - our launcher needs no workspace
        return next_id
    if instance.get_run_ids(RunsFilter(tags={PARENT_RUN_ID_TAG: run.run_id}), limit=1):
        return None  # somebody has replayed it
    number = retries_of(run.tags) + 1
    try:
        plan = _plan(run)
        if number > _most_retries(plan):
            return None
        return _again(instance, run, plan, next_id, {RETRY_NUMBER_TAG: str(number), **_elsewhere(run, plan, number)})
    except DagsterRunAlreadyExists:
        return next_id
    except (ReplayRefused, DagsterError) as error:
        instance.report_engine_event(f"there is no further attempt: {error}", run)
        return None


def next_attempt_id(run_id: str) -> str:
    """Return the id of the attempt that follows when a run loses its worker; it is the same for all who notice."""
    return str(uuid5(UUID(run_id), "worker lost"))


def _lost_itself(run: DagsterRun) -> bool:
    """Whether the run's own worker was lost; a step whose work was lost has had its attempts within the run."""
    return run.tags.get(CAUSE) == Cause.WORKER_LOST.value and not run.tags.get(ATTEMPTS)


def _most_retries(plan: Plan) -> int:
    asked = [step.stage.spec.retry.max_retries for step in plan.steps if step.kind == "stage" and step.stage]
    return Cause.WORKER_LOST.retries(max(asked, default=0))


def _elsewhere(run: DagsterRun, plan: Plan, number: int) -> dict[str, str]:
    """Tags by which the queue has an attempt wait a while and, where it can, begin on another worker."""
    wait = max((step.stage.spec.retry.backoff for step in plan.steps if step.stage), default=0.0)
    grant = Grant.of_run(run)
    tags = {NOT_BEFORE: f"{time.time() + backoff_seconds(wait, number):.3f}"}
    return {**tags, AVOID: grant.worker} if grant else tags


def _plan(run: DagsterRun) -> Plan:
    """Return the plan of the run's task file; raises ReplayRefused when that is not what it was."""
    folder = os.environ.get("MLOC_TASK_SPECS") or task_specs_of(run).get("MLOC_TASK_SPECS") or "task_specs"
    workspace = Path(folder)
    short, anew = run.run_id[:8], "run the file itself: mloc run FILE"
    try:
        plan = TaskFiles(workspace if workspace.is_dir() else None, Home.current()).plan(run.job_name)
    except KeyError:
        raise ReplayRefused(f"the task file of {short} (job {run.job_name}) is not there any more", anew) from None
    except SpecError as error:
        first = str(error).splitlines()[0]
        raise ReplayRefused(f"the task file of {short} has faults now: {first}", anew) from None
    then, now = run.tags.get("mloc/spec_digest", "?"), plan.task.digest[:16]
    submitted = run.job_name.endswith(f"__{then[:8]}")  # kept under its digest, and never written again
    if then != now and not submitted:
        raise ReplayRefused(f"the task file of {short} has changed since: {then} then, {now} now", anew)
    return plan


def _again(instance: DagsterInstance, run: DagsterRun, plan: Plan, run_id: str, tags: dict[str, str]) -> str:
    """Create a run that goes on from another, and hand it to the run coordinator."""
    root = run.root_run_id or run.run_id
    kept = {key: value for key, value in run.tags.items() if key == PRIORITY_TAG or _is_of_task(key)}
    kept[TASK_ID] = run.tags.get(TASK_ID) or root
    links = {REPLAY_OF: run.run_id, PARENT_RUN_ID_TAG: run.run_id, ROOT_RUN_ID_TAG: root}
    job = build_job(plan, run.job_name).job
    chosen = set(run.asset_selection) if run.asset_selection else None
    instance.create_run_for_job(
        job_def=job.get_subset(asset_selection=chosen) if chosen else job,
        run_id=run_id,
        tags={**kept, **links, **tags},
        root_run_id=root,
        parent_run_id=run.run_id,
        remote_job_origin=run.remote_job_origin,
        job_code_origin=run.job_code_origin,
        asset_selection=chosen,
    )
    instance.submit_run(run_id, None)  # pyright: ignore[reportArgumentType] - our launcher needs no workspace
    return run_id


def _is_of_task(key: str) -> bool:
    """Whether a tag belongs to the task, as the user's own do; Dagster's tell of one run."""
    return key not in _OF_ONE_RUN and not key.startswith(("dagster/", ".dagster/"))
