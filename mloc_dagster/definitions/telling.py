"""What a run tells outside of Dagster: its trace, and its events as lines of JSON."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dagster import DagsterEventType, DagsterInstance, DagsterRun

from mloc_dagster.telemetry import logs, traces
from mloc_dagster.telemetry.traceparent import TAG, VARIABLE

_log = logging.getLogger("mloc")
_WAITED = {DagsterEventType.RUN_ENQUEUED, DagsterEventType.RUN_DEQUEUED, DagsterEventType.RUN_STARTING}


def run_logs_as_json() -> None:
    """Have the console logger of runs in this process write JSON: Dagster lets no setting of an instance choose it."""
    from dagster import LoggerDefinition
    from dagster._core.execution import context_creation_job

    def made(_context: object) -> logging.Logger:
        logger = logging.Logger("dagster", logging.DEBUG)
        logger.addHandler(logs.handler_of("worker", "json"))
        return logger

    ours = LoggerDefinition(made)
    setattr(context_creation_job, "default_system_loggers", lambda _instance: [(ours, {})])  # noqa: B010 - not exported


@contextmanager
def traced(instance: DagsterInstance, run: DagsterRun) -> Iterator[None]:
    """Trace a run: how long it was in the queue, how long its place took, and the run; its steps find it in their
    environment. Spans are sent at the end, which takes a few seconds where the collector does not answer."""
    traces.forget()
    try:
        mine, _ = traces.of_process("worker")
    except traces.Unusable as error:
        _log.warning("the run is not traced: %s", error)
        mine = traces.Traces("worker", None)
    parent, ids = run.tags.get(TAG), _ids(run)
    try:
        with mine.span("run", parent, ids) as span:
            os.environ.pop(VARIABLE, None)
            if span:
                os.environ[VARIABLE] = span
            if mine.on:
                _tell_waits(mine, instance, run, parent or span)
            yield
    finally:
        mine.send()


@contextmanager
def step_traced(run: DagsterRun, step: str) -> Iterator[None]:
    """Trace a step, and have its span in the environment of what it starts."""
    try:
        mine, made_here = traces.of_process("worker")
    except traces.Unusable:  # the run has told
        mine, made_here = traces.Traces("worker", None), False
    before = os.environ.get(VARIABLE)
    try:
        with mine.span("step", before or run.tags.get(TAG), {**_ids(run), "mloc.step": step}) as span:
            if span:
                os.environ[VARIABLE] = span
            yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before
        if made_here:
            mine.send()


def _tell_waits(mine: traces.Traces, instance: DagsterInstance, run: DagsterRun, parent: str | None) -> None:
    """Tell of the queue (until the run was taken from it) and of its place (until its worker began)."""
    times = {
        entry.dagster_event.event_type: entry.timestamp
        for entry in instance.all_logs(run.run_id, of_type=_WAITED)
        if entry.dagster_event
    }
    queued, taken = times.get(DagsterEventType.RUN_ENQUEUED), times.get(DagsterEventType.RUN_DEQUEUED)
    launched = times.get(DagsterEventType.RUN_STARTING)
    begun = time.time()
    if queued is not None:
        mine.past("queue", parent, queued, taken or launched or begun, _ids(run))
    placed = taken or launched
    if placed is not None:
        mine.past("place", parent, placed, begun, _ids(run))


def _ids(run: DagsterRun) -> dict[str, str]:
    tags = {"mloc.owner": run.tags.get("mloc/owner"), "mloc.project": run.tags.get("mloc/project")}
    known = {name: value for name, value in tags.items() if value}
    task = run.tags.get("mloc/task_id") or run.root_run_id or run.run_id
    return {"mloc.run_id": run.run_id, "mloc.task_id": task, "mloc.job": run.job_name, **known}
