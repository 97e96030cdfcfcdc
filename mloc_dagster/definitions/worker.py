"""One run in one process: `python -m mloc_dagster.definitions.worker RUN_ID`, or a child of the pool."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run_iterator
from dagster._utils.interrupts import capture_interrupts, setup_interrupt_handlers

from executors.registry import BUILT_IN, find
from mloc_dagster.definitions.execution import note_cause, task_id_of
from mloc_dagster.definitions.lost import report_lost
from mloc_dagster.definitions.replay import retry_lost
from mloc_dagster.definitions.repository import TaskFiles
from mloc_dagster.definitions.telling import run_logs_as_json, traced
from mloc_dagster.placement.failures.cause import Cause
from mloc_dagster.placement.launcher.workers import WORKER, only_holder, worker_tag
from mloc_dagster.placement.ledger import Ledger
from mloc_dagster.placement.ledger.grant import Grant, LeaseLost, held
from mloc_dagster.placement.queue.signals import knock
from mloc_dagster.plan import Plan
from mloc_dagster.spec.stage import StageSpec
from mloc_dagster.store.home import Home
from mloc_dagster.telemetry import logs
from mloc_dagster.usage.held import note_held

_log = logging.getLogger("mloc")


class Ended(NamedTuple):
    """How a run ended in this process."""

    code: int
    """0 when it succeeded."""
    light: bool = False
    """Whether all of it was light work of our own executors: no code of others, and no heavy library."""


def main(run_id: str) -> int:
    """Execute a run that is waiting in the instance that DAGSTER_HOME names; returns 0 when it succeeded."""
    configure_logs()
    with DagsterInstance.get() as instance:
        return execute(instance, run_id).code


def configure_logs() -> None:
    """Have this process, and what Dagster tells of the run, log as the environment asks."""
    try:
        if logs.configure("worker") == "json":
            run_logs_as_json()
    except logs.BadFormat as error:
        print(error, file=sys.stderr)


def execute(instance: DagsterInstance, run_id: str, ready: Callable[[], None] = lambda: None) -> Ended:
    """Execute a waiting run in this process; the code is 0 when it succeeded.

    Calls `ready` when it is known that this process executes the run, or that nothing is to be done.
    """
    setup_interrupt_handlers()
    with capture_interrupts(), only_holder(Home.current(), run_id) as alone:
        run = instance.get_run_by_id(run_id)
        if run is None:
            print(f"there is no run {run_id} in {instance.root_directory}", file=sys.stderr)
            return Ended(2)
        if not alone or run.is_finished:
            ready()
            print(f"run {run_id} is {run.status.value} already; nothing to do", file=sys.stderr)
            return Ended(0)
        run = _noted(instance, run)
        ready()
        with logs.about(run_id=run_id, task_id=task_id_of(instance, run)), traced(instance, run):
            _log.info("begins %s", run.job_name)
            ended = _execute(instance, run)
            _log.info("ended %s with %d", run.job_name, ended.code)
            return ended


def _noted(instance: DagsterInstance, run: DagsterRun) -> DagsterRun:
    """Note this process as the run's worker, in case that the launcher has not, or died before it could."""
    tag = worker_tag(os.getpid())
    if run.tags.get(WORKER) == tag:
        return run
    instance.add_run_tags(run.run_id, {WORKER: tag})
    return run.with_tags({**run.tags, WORKER: tag})


def _execute(instance: DagsterInstance, run: DagsterRun) -> Ended:
    with ExitStack() as stack:
        try:
            stack.enter_context(_lease(instance, run))
        except LeaseLost as error:
            report_lost(instance, run.run_id, str(error))
            retry_lost(instance, run.run_id)
            return Ended(1)
        ended = _execute_events(instance, run)
    if ended.code:
        retry_lost(instance, run.run_id)  # when its lease was lost
    return ended


@contextmanager
def _lease(instance: DagsterInstance, run: DagsterRun) -> Iterator[None]:
    """Hold what the queue has given the run, and let the queue know at the end; without one it takes what it needs."""
    grant = Grant.of_run(run)
    if grant is None:
        note_held(instance, run)
        yield
        return

    def lost(reason: str) -> None:
        try:
            note_cause(instance, run.run_id, Cause.WORKER_LOST)
            instance.report_engine_event(f"the run ends: {reason}", run)
        finally:  # the database may be what is lost
            os.kill(os.getpid(), signal.SIGTERM)

    with held(Ledger.of_instance(instance), grant, lost):
        yield
    knock(Path(instance.root_directory))


def _execute_events(instance: DagsterInstance, run: DagsterRun) -> Ended:
    files = TaskFiles.of_environment()
    try:
        job = files.get_job(run.job_name)
        light = _is_light(files.plan(run.job_name))  # before the file may change
        events = execute_run_iterator(InMemoryJob(job), run, instance)
    except Exception as error:  # a fault of the task file or of an executor package; the run must say so
        note_cause(instance, run.run_id, Cause.USER)
        instance.report_run_failed(run, message=f"the job could not be made: {error}")
        return Ended(1)
    for event in events:
        if event.is_failure:
            print(event.message, file=sys.stderr)
    ended = instance.get_run_by_id(run.run_id)
    if ended and ended.status is DagsterRunStatus.FAILURE:
        note_cause(instance, run.run_id, Cause.INTERNAL)  # unless a step has told its own
    return Ended(0, light) if ended and ended.is_success else Ended(1)


def _is_light(plan: Plan) -> bool:
    return all(step.kind == "stage" and step.stage and _runs_inline(step.stage.spec) for step in plan.steps)


def _runs_inline(spec: StageSpec) -> bool:
    return spec.task_type in BUILT_IN and find(spec.task_type).inline and not spec.timeout_seconds


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
