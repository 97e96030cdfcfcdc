"""One run in one process: `python -m mloc_dagster.definitions.worker RUN_ID`."""

from __future__ import annotations

import sys

from dagster import DagsterInstance, DagsterRun
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run_iterator
from dagster._utils.interrupts import capture_interrupts, setup_interrupt_handlers

from mloc_dagster.definitions.repository import TaskFiles


def main(run_id: str) -> int:
    """Execute a run that is waiting in the instance that DAGSTER_HOME names; returns 0 when it succeeded."""
    setup_interrupt_handlers()
    with DagsterInstance.get() as instance:
        run = instance.get_run_by_id(run_id)
        if run is None:
            print(f"there is no run {run_id} in {instance.root_directory}", file=sys.stderr)
            return 2
        return _execute(instance, run)


def _execute(instance: DagsterInstance, run: DagsterRun) -> int:
    try:
        job = TaskFiles.of_environment().get_job(run.job_name)
        if run.asset_selection or run.op_selection or run.asset_check_selection:
            job = job.get_subset(
                op_selection=run.op_selection, asset_selection=run.asset_selection, asset_check_selection=run.asset_check_selection
            )
    except Exception as error:
        instance.report_run_failed(run, message=f"the job could not be made: {error}")
        return 1
    with capture_interrupts():
        for event in execute_run_iterator(InMemoryJob(job), run, instance):
            if event.is_failure:
                print(event.message, file=sys.stderr)
    ended = instance.get_run_by_id(run.run_id)
    return 0 if ended and ended.is_success else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
