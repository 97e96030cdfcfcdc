"""One run in one process: `python -m mloc_dagster.definitions.worker RUN_ID`."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dagster import DagsterInstance, DagsterRun
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run_iterator
from dagster._utils.interrupts import capture_interrupts, setup_interrupt_handlers

from mloc_dagster.definitions.launcher import WORKER, worker_tag
from mloc_dagster.definitions.repository import TaskFiles
from mloc_dagster.store.home import Home


def main(run_id: str) -> int:
    """Execute a run that is waiting in the instance that DAGSTER_HOME names; returns 0 when it succeeded."""
    setup_interrupt_handlers()
    with capture_interrupts(), DagsterInstance.get() as instance, _only_one(run_id) as alone:
        run = instance.get_run_by_id(run_id)
        if run is None:
            print(f"there is no run {run_id} in {instance.root_directory}", file=sys.stderr)
            return 2
        if not alone or run.is_finished:
            print(f"run {run_id} is {run.status.value} already; nothing to do", file=sys.stderr)
            return 0
        return _execute(instance, _noted(instance, run))


@contextmanager
def _only_one(run_id: str) -> Iterator[bool]:
    """Hold the run as long as this process lives; gives False when another worker holds it."""
    path = Home.current().logs / f"{run_id}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            alone = False
        yield alone
        if alone:
            path.unlink(missing_ok=True)


def _noted(instance: DagsterInstance, run: DagsterRun) -> DagsterRun:
    """Note this process as the run's worker, in case that the launcher died before it could."""
    tag = worker_tag(os.getpid())
    if run.tags.get(WORKER) != tag:
        instance.add_run_tags(run.run_id, {WORKER: tag})
    return instance.get_run_by_id(run.run_id) or run


def _execute(instance: DagsterInstance, run: DagsterRun) -> int:
    try:
        job = TaskFiles.of_environment().get_job(run.job_name)
        events = execute_run_iterator(InMemoryJob(job), run, instance)
    except Exception as error:  # a fault of the task file or of an executor package; the run must say so
        instance.report_run_failed(run, message=f"the job could not be made: {error}")
        return 1
    for event in events:
        if event.is_failure:
            print(event.message, file=sys.stderr)
    ended = instance.get_run_by_id(run.run_id)
    return 0 if ended and ended.is_success else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
