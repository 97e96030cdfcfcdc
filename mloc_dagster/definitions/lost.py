"""Runs whose worker is gone are ended at once, whether or not a daemon watches over them, and tried again."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from dagster import DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.launcher.base import WorkerStatus

from executors.heartbeat import Pulse
from mloc_dagster.definitions.execution import note_cause
from mloc_dagster.definitions.replay import retry_lost
from mloc_dagster.placement.failures.cause import Cause
from mloc_dagster.placement.failures.silence import LOST_AFTER, Silence
from mloc_dagster.placement.launcher.launcher import CANCEL
from mloc_dagster.placement.launcher.workers import end_now, only_holder, worker_of
from mloc_dagster.store.home import Home

_LAST_SECONDS = 2.0
"""How long what a killed worker has left may still hold its run."""
_ENDS = {DagsterEventType.RUN_SUCCESS, DagsterEventType.RUN_FAILURE, DagsterEventType.RUN_CANCELED}
_ALIVE = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]


def end_lost(instance: DagsterInstance) -> None:
    """End every run of this home whose worker was killed; what its work had stored is continued by the next run."""
    deadline = time.monotonic() + _LAST_SECONDS
    for run in instance.get_runs(RunsFilter(statuses=_ALIVE)):
        end_if_lost(instance, run, patience=max(0.0, deadline - time.monotonic()))


def end_if_lost(instance: DagsterInstance, run: DagsterRun, patience: float = 0.0) -> bool:
    """Report a run as failed (or cancelled, when that was asked for) if its worker is gone; returns whether it was.

    It is not over as long as something of it goes on, such as a stage that stores its state; `patience`: how many
    seconds to wait for that.
    """
    launcher = instance.run_launcher
    if run.status not in _ALIVE or not launcher.supports_check_run_worker_health:
        return False
    health = launcher.check_run_worker_health(run)
    if health.status is not WorkerStatus.FAILED:
        return False
    return report_gone(instance, run.run_id, str(health.msg), patience)


def report_gone(instance: DagsterInstance, run_id: str, reason: str, patience: float = _LAST_SECONDS) -> bool:
    """Report a run whose worker seems to be gone, unless one holds it, which may only just have begun."""
    with only_holder(Home.current(), run_id, patience=patience) as alone:
        return alone and report_lost(instance, run_id, reason)


def report_lost(instance: DagsterInstance, run_id: str, reason: str) -> bool:
    """Report a run whose worker is gone as failed, or as cancelled when that was asked for; returns whether it was."""
    current = instance.get_run_by_id(run_id)  # it may have ended well since it was read
    if current is None or current.status not in _ALIVE:
        return False
    if _note_end(instance, run_id):
        return True
    if current.status is DagsterRunStatus.CANCELING:
        instance.report_run_canceled(current, message=reason)
    else:
        note_cause(instance, run_id, Cause.WORKER_LOST)
        instance.report_run_failed(current, message=f"{reason}. The next attempt goes on from what is stored")
    return True


def _note_end(instance: DagsterInstance, run_id: str) -> bool:
    """End a run as its events say it has; its worker was killed after it had said so, and before it noted it."""
    ends = [entry for entry in instance.all_logs(run_id, of_type=_ENDS) if entry.dagster_event]
    if not ends:
        return False
    moment = datetime.fromtimestamp(ends[0].timestamp, UTC)
    instance.run_storage.handle_run_event(run_id, ends[0].get_dagster_event(), moment)
    return True


class Watch:
    """What a daemon does for runs that go on: ends those without a worker, or with a silent one, and retries them."""

    def __init__(self, instance: DagsterInstance, limit: float | None) -> None:
        self._instance, self._limit = instance, limit
        self._silences: dict[str, tuple[Pulse, Silence]] = {}

    def settle(self, run: DagsterRun, expired: bool) -> bool:
        """Whether a run is over: it has ended, or did now. `expired`: its lease was not renewed in time."""
        self._end_as_asked(run)
        if not expired:
            self._silences.pop(run.run_id, None)
        if not run.is_finished and not end_if_lost(self._instance, run):
            if not expired or not self._too_long(run):
                return False
            self._end_silent(run)
        self._silences.pop(run.run_id, None)
        retry_lost(self._instance, run.run_id)
        return True

    def settle_all(self) -> None:
        """End all runs without a worker, those without a lease too."""
        for run in self._instance.get_runs(RunsFilter(statuses=_ALIVE)):
            self._end_as_asked(run)
            if end_if_lost(self._instance, run):
                retry_lost(self._instance, run.run_id)

    def _end_as_asked(self, run: DagsterRun) -> None:
        """End a run whose worker is here, and that was cancelled on another machine."""
        if run.status is DagsterRunStatus.CANCELING and run.tags.get(CANCEL) == "asked" and worker_of(run):
            self._instance.add_run_tags(run.run_id, {CANCEL: "told"})
            self._instance.run_launcher.terminate(run.run_id)

    def _too_long(self, run: DagsterRun) -> bool:
        """Whether its worker, for as long as the limit, neither renewed the lease nor did anything else."""
        known = self._silences.get(run.run_id)
        if known is None:
            worker = worker_of(run)
            known = Pulse(worker.pid if worker else 0), Silence(self._limit)
            self._silences[run.run_id] = known
        pulse, silence = known
        return silence.over(pulse.felt())

    def _end_silent(self, run: DagsterRun) -> None:
        worker = worker_of(run)
        who = f"the worker process {worker.pid}" if worker else "the run's worker never began: it"
        report_lost(self._instance, run.run_id, f"{who} gave no sign of life for too long; see {LOST_AFTER}")
        end_now(Home.current(), run.run_id, worker)
