"""What failed in a run, as its events tell it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dagster import DagsterEvent, DagsterEventType, DagsterInstance, DagsterRun

from mloc_dagster.placement.failures.cause import ATTEMPTS, CAUSE


@dataclass(frozen=True)
class StepFault:
    """One failed step, or the run itself when its `step` is `run`; the step is written as its asset, `task/stage`."""

    step: str
    message: str
    cause: str | None
    attempts: int


def faults_of(instance: DagsterInstance, run: DagsterRun) -> list[StepFault]:
    """Return what failed in a run, first things first; the run itself only when no step did."""
    kinds = {DagsterEventType.STEP_FAILURE, DagsterEventType.RUN_FAILURE}
    records = instance.get_records_for_run(run.run_id, of_type=kinds).records
    events = [record.event_log_entry.dagster_event for record in records]
    return list(_faults(run, [event for event in events if event is not None]))


def _faults(run: DagsterRun, events: list[DagsterEvent]) -> Iterator[StepFault]:
    steps = [event for event in events if event.event_type is DagsterEventType.STEP_FAILURE]
    for event in steps:
        yield _of_step(run, event)
    if not steps and events:
        yield StepFault("run", events[0].message or "", run.tags.get(CAUSE) or None, int(run.tags.get(ATTEMPTS) or 1))


def _of_step(run: DagsterRun, event: DagsterEvent) -> StepFault:
    data = event.step_failure_data
    told = data.user_failure_data
    metadata = told.metadata if told else {}
    message = (told.description if told else None) or (data.error.message.strip() if data.error else event.message)
    cause = metadata["cause"].value if "cause" in metadata else run.tags.get(CAUSE)
    attempts = metadata["attempts"].value if "attempts" in metadata else run.tags.get(ATTEMPTS) or 1
    return StepFault((event.step_key or "").replace("__", "/"), message or "", str(cause), int(str(attempts)))
