"""Dagster's schedules and sensors of the task files that were added: it keeps their ticks, states and time zones."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator

from dagster import (
    DagsterInstance,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SensorDefinition,
    SensorEvaluationContext,
    SkipReason,
)
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.definitions.sensor_definition import SensorType
from dagster._core.remote_origin import RemoteInstigatorOrigin
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
    SensorInstigatorData,
    TickStatus,
)
from dagster._utils.schedules import schedule_execution_time_iterator

from mloc_dagster.definitions.added import Added, AddedFiles
from mloc_dagster.definitions.execution import FRESH
from mloc_dagster.definitions.submit import job_origin
from mloc_dagster.definitions.triggers import CannotLook, Look, look
from mloc_dagster.spec import SpecError, TaskFile
from mloc_dagster.spec.schedule import Triggers
from mloc_dagster.store.home import Home
from mloc_dagster.usage.budgets import BudgetExceeded, refuse_beyond

BY = "mloc/by"
"""Run tag: the schedule, or what has come, that started a run."""
_LONGEST_TAG = 200
_log = logging.getLogger("mloc")


def schedules_of(home: Home) -> Iterator[ScheduleDefinition]:
    """Yield the schedules of the files that were added to a home."""
    for added, task in _loaded(home):
        if task.schedule is not None:
            yield _schedule(added, task)


def sensors_of(home: Home) -> Iterator[SensorDefinition]:
    """Yield the sensors of the files that were added to a home."""
    for added, task in _loaded(home):
        if task.triggers is not None:
            yield _sensor(added, task, task.triggers)


def states_of(instance: DagsterInstance, added: Added, task: TaskFile) -> dict[str, str]:
    """Return whether schedule and triggers of a file are RUNNING or STOPPED."""
    found = {}
    for kind, origin in _origins(added, task):
        state = _state(instance, origin)
        found[kind] = state.status.value if state else InstigatorStatus.STOPPED.value
    return found


def is_paused(instance: DagsterInstance, added: Added) -> bool:
    """Whether anything of a file is there and stands still."""
    found = (_state(instance, _origin(added, name)) for name in (added.schedule_name, added.sensor_name))
    return any(state is not None and state.status is InstigatorStatus.STOPPED for state in found)


def next_tick(task: TaskFile) -> float | None:
    """Return when a schedule is next due, in seconds since the epoch; None without one."""
    if task.schedule is None:
        return None
    moments = schedule_execution_time_iterator(time.time(), task.schedule.cron, task.schedule.timezone)
    return next(moments).timestamp()


def last_tick(instance: DagsterInstance, added: Added, kind: str) -> dict[str, str | float] | None:
    """Return when a schedule or its triggers last started or did not start a run, and what came of it."""
    origin = _origin(added, added.schedule_name if kind == "schedule" else added.sensor_name)
    ticks = instance.get_ticks(origin.get_id(), origin.get_selector().get_id(), limit=1, statuses=_TELLING)
    if not ticks:
        return None
    tick = ticks[0]
    told = ", ".join(f"run {run_id[:8]}" for run_id in tick.run_ids) or tick.skip_reason
    error = tick.error.message.strip().splitlines()[0] if tick.error else ""
    return {"at": tick.timestamp, "status": tick.status.value, "told": error or told or tick.status.value}


def set_states(instance: DagsterInstance, added: Added, task: TaskFile, status: InstigatorStatus) -> None:
    """Have schedule and triggers of a file run, or pause them. What passes during a pause is not made up for."""
    for kind, origin in _origins(added, task):
        state = _state(instance, origin)
        if state is not None and state.status is status:
            continue
        data = _data(task, kind, state)
        if state is None:
            instance.add_instigator_state(InstigatorState(origin, _TYPES[kind], status, data))
        else:
            instance.update_instigator_state(state.with_status(status).with_data(data))


def forget_states(instance: DagsterInstance, added: Added) -> None:
    """Remove what Dagster keeps of a file's schedule and triggers."""
    for name in (added.schedule_name, added.sensor_name):
        origin = _origin(added, name)
        if _state(instance, origin) is not None:
            instance.delete_instigator_state(origin.get_id(), origin.get_selector().get_id())


_TELLING = [TickStatus.SUCCESS, TickStatus.FAILURE, TickStatus.SKIPPED]
_TYPES = {"schedule": InstigatorType.SCHEDULE, "triggers": InstigatorType.SENSOR}


def _loaded(home: Home) -> Iterator[tuple[Added, TaskFile]]:
    for added in AddedFiles(home):
        try:
            yield added, added.load()
        except SpecError as error:
            _log.warning("left out %s, which was added: %s", added.task, str(error).splitlines()[0])


def _schedule(added: Added, task: TaskFile) -> ScheduleDefinition:
    schedule = task.schedule
    assert schedule is not None

    def tick(context: ScheduleEvaluationContext) -> RunRequest | SkipReason:
        if refused := _refused(context.instance, task):
            return SkipReason(refused)
        tags = {BY: added.schedule_name, **({FRESH: "true"} if schedule.fresh else {})}
        return RunRequest(tags=tags)

    return ScheduleDefinition(
        name=added.schedule_name,
        cron_schedule=schedule.cron,
        execution_timezone=schedule.timezone,
        job_name=added.job,
        execution_fn=tick,
        description=f"Runs {task.name} at {schedule.cron} ({schedule.timezone}).",
    )


def _sensor(added: Added, task: TaskFile, triggers: Triggers) -> SensorDefinition:
    def tick(context: SensorEvaluationContext) -> Iterator[RunRequest | SkipReason]:
        try:
            found = look(context.instance, triggers, task.name, added.added_at, Look.read(context.cursor))
        except CannotLook as error:
            yield SkipReason(str(error))
            return
        if found.came and (refused := _refused(context.instance, task)):
            yield SkipReason(refused)  # the cursor stays: what came starts the task once the budget allows it
            return
        if found.came:
            told = ", ".join(found.came)
            yield RunRequest(run_key=f"{added.added_at:.3f}/{found.key}", tags={BY: told[:_LONGEST_TAG]})
        else:
            yield SkipReason("nothing has come")
        context.update_cursor(found.after.written())

    return SensorDefinition(
        name=added.sensor_name,
        job_name=added.job,
        evaluation_fn=tick,
        minimum_interval_seconds=triggers.every_seconds,
        description=f"Runs {task.name} when something comes: {json.dumps(triggers.model_dump(exclude_defaults=True))}",
    )


def _refused(instance: DagsterInstance, task: TaskFile) -> str:
    """What a budget says against new work of a task's owner; empty when nothing does."""
    try:
        refuse_beyond(instance, task.owner, task.project)
    except BudgetExceeded as error:
        return f"{error}; new work is refused; {error.way_out}"
    except SpecError as error:
        return f"budgets cannot be read: {str(error).splitlines()[0]}"
    return ""


def _state(instance: DagsterInstance, origin: RemoteInstigatorOrigin) -> InstigatorState | None:
    return instance.get_instigator_state(origin.get_id(), origin.get_selector().get_id())


def _origins(added: Added, task: TaskFile) -> Iterator[tuple[str, RemoteInstigatorOrigin]]:
    if task.schedule is not None:
        yield "schedule", _origin(added, added.schedule_name)
    if task.triggers is not None:
        yield "triggers", _origin(added, added.sensor_name)


def _origin(added: Added, name: str) -> RemoteInstigatorOrigin:
    return RemoteInstigatorOrigin(job_origin(added.job).repository_origin, name)


def _data(task: TaskFile, kind: str, before: InstigatorState | None) -> ScheduleInstigatorData | SensorInstigatorData:
    if kind == "schedule":
        assert task.schedule is not None
        return ScheduleInstigatorData(task.schedule.cron, time.time())
    assert task.triggers is not None
    data = before.instigator_data if before is not None else None
    return SensorInstigatorData(
        min_interval=task.triggers.every_seconds,
        cursor=data.cursor if isinstance(data, SensorInstigatorData) else None,
        last_sensor_start_timestamp=time.time(),
        sensor_type=SensorType.STANDARD,
    )
