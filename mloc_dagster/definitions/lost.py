"""Runs whose worker is gone are ended at once, whether or not a daemon watches over them."""

from __future__ import annotations

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.launcher.base import WorkerStatus

_ALIVE = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]


def end_lost(instance: DagsterInstance) -> None:
    """End every run of this home whose worker was killed; what its work had stored is continued by the next run."""
    for run in instance.get_runs(RunsFilter(statuses=_ALIVE)):
        end_if_lost(instance, run)


def end_if_lost(instance: DagsterInstance, run: DagsterRun) -> bool:
    """Report a run as failed (or cancelled, when that was asked for) if its worker is gone; returns whether it was."""
    launcher = instance.run_launcher
    if run.status not in _ALIVE or not launcher.supports_check_run_worker_health:
        return False
    health = launcher.check_run_worker_health(run)
    if health.status is not WorkerStatus.FAILED:
        return False
    return report_lost(instance, run.run_id, str(health.msg))


def report_lost(instance: DagsterInstance, run_id: str, reason: str) -> bool:
    """Report a run whose worker is gone as failed, or as cancelled when that was asked for; returns whether it was."""
    current = instance.get_run_by_id(run_id)  # it may have ended well since it was read
    if current is None or current.status not in _ALIVE:
        return False
    if current.status is DagsterRunStatus.CANCELING:
        instance.report_run_canceled(current, message=reason)
    else:
        instance.report_run_failed(current, message=f"{reason}. Run the file again: it goes on from what is stored")
    return True
