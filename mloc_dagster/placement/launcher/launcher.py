"""The run launcher that `dagster.yaml` names."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from dagster import DagsterRun, DagsterRunStatus, Field
from dagster._config import BoolSource, IntSource
from dagster._core.events import EngineEventData
from dagster._core.launcher.base import CheckRunHealthResult, LaunchRunContext, RunLauncher, WorkerStatus
from dagster._serdes import ConfigurableClass, ConfigurableClassData

from executors.stopping import GRACE
from mloc_dagster.placement.launcher import client
from mloc_dagster.placement.launcher.workers import (
    LAUNCHER,
    WORKER,
    is_elsewhere,
    launcher_is_gone,
    launcher_tag,
    only_holder,
    see_to_the_end,
    still_has,
    tell_to_end,
    worker_of,
    worker_tag,
)
from mloc_dagster.store.home import Home

WORKER_MODULE = "mloc_dagster.definitions.worker"
CANCEL = "mloc/cancel"
"""Run tag: `asked` where its worker is on another machine, `told` when that worker has been asked to end."""
_FINDING_SECONDS = 2.0
"""How long a worker that has just begun may take to say so."""
_LAST_SECONDS = 15.0
"""Of the grace, what is left to a run's worker when its stages have ended."""
_log = logging.getLogger("mloc")


class LocalRunLauncher(RunLauncher, ConfigurableClass):
    """Starts each run in a worker process, a session of its own, that outlives whoever started it.

    `warm`: fork workers from a pool (Linux); without one, or where it does not answer, a worker is started anew.
    `terminate_grace_seconds`: time that a run has to end after SIGTERM before it is killed; its work has all but
    the last 15 seconds of that (half, where it is short) to write a checkpoint, or MLOC_TERMINATE_GRACE_SECONDS.
    """

    def __init__(
        self, terminate_grace_seconds: int = 60, warm: bool = True, inst_data: ConfigurableClassData | None = None
    ) -> None:
        self._inst_data = inst_data
        self._grace = terminate_grace_seconds
        self._warm = warm and sys.platform.startswith("linux")
        self._launched: list[str] = []
        super().__init__()

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """The configuration that it was made from."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """What `dagster.yaml` may set."""
        return {
            "terminate_grace_seconds": Field(IntSource, is_required=False, default_value=60),
            "warm": Field(BoolSource, is_required=False, default_value=True),
        }

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> LocalRunLauncher:
        """Make one from `dagster.yaml`."""
        return cls(inst_data=inst_data, **config_value)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Start the run's worker; when this returns, a tag of the run says which process it is."""
        run = context.dagster_run
        environment = {GRACE: f"{self._work_grace:g}", **os.environ, **self._places(), **task_specs_of(run)}
        self._launched.append(run.run_id)
        tag = launcher_tag(run.run_id)
        if run.tags.get(LAUNCHER) != tag:  # the queue has told it with the lease
            self._instance.add_run_tags(run.run_id, {LAUNCHER: tag})
        if self._warm:
            try:
                client.hand_over(Home.current(), self._settings, run.run_id, environment)
                return
            except client.PoolUnavailable as error:
                self._warn(run, f"cold start: {error}")
        self._start(run.run_id, environment)

    def warm_up(self) -> None:
        """Start the pool before the first run, where there is to be one; a failure is a warning."""
        if not self._warm:
            return
        try:
            client.start(Home.current(), self._settings, {**os.environ, **self._places()})
        except client.PoolUnavailable as error:
            _log.warning("runs will start cold: %s", error)

    def terminate(self, run_id: str) -> bool:
        """Ask the worker to end its work, and kill the whole session when it has not after the grace period."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        worker = self._worker(run_id)
        if worker is None:
            return True
        worker.send_signal(signal.SIGTERM)
        thread = threading.Thread(
            target=see_to_the_end, args=(self._instance, run_id, worker, self._grace), name=f"end-{run_id[:8]}"
        )
        thread.start()
        return True

    def _worker(self, run_id: str) -> psutil.Process | None:
        """Return the worker of a run that is to end.

        None when there is nobody to ask: it is gone, so the run is over now, or what it has left still ends, and the
        run is over with that; or it is on another machine, whose daemon is asked to.
        """
        deadline = time.monotonic() + _FINDING_SECONDS
        while run := self._instance.get_run_by_id(run_id):
            worker = worker_of(run)
            if worker is not None and tell_to_end(Home.current(), run_id, worker):
                return worker
            if is_elsewhere(run):
                self._instance.add_run_tags(run_id, {CANCEL: "asked"})
                return None
            with only_holder(Home.current(), run_id) as alone:
                if alone and not run.is_finished:
                    self._instance.report_run_canceled(run, message="the worker was gone already")
            if alone or time.monotonic() > deadline:
                return None
            time.sleep(0.05)
        return None

    def join(self, timeout: int = 30) -> None:
        """Wait until all runs that were launched here have lost their workers, at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        for run_id in self._launched:
            while time.monotonic() < deadline:
                run = self._instance.get_run_by_id(run_id)
                worker = worker_of(run) if run else None
                if worker is None or not still_has(Home.current(), run_id, worker):
                    break
                time.sleep(0.05)

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Yes: a worker is alive while its process is."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the process that was started is still there.

        A run without a worker is executed by a process that is not ours, such as `dagster job execute`; Dagster's
        monitoring fails whatever is not said to be running, so it is.
        """
        if run.status is DagsterRunStatus.STARTING and worker_of(run) is None and launcher_is_gone(run):
            return CheckRunHealthResult(WorkerStatus.FAILED, "the process that was starting its worker was killed")
        if not run.tags.get(WORKER):
            return CheckRunHealthResult(WorkerStatus.RUNNING, "not started by this launcher")
        if is_elsewhere(run):
            return CheckRunHealthResult(WorkerStatus.RUNNING, "its worker is on another machine")
        if worker_of(run) is not None:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        log = Home.current().logs / f"{run.run_id}.log"
        pid = run.tags[WORKER].partition(":")[0]
        message = f"the worker process {pid} is gone (killed, or out of memory); see {log}"
        return CheckRunHealthResult(WorkerStatus.FAILED, message)

    @property
    def _settings(self) -> Path:
        return Path(self._instance.root_directory) / "dagster.yaml"

    @property
    def _work_grace(self) -> float:
        """Seconds that a stage has to store its state."""
        return max(self._grace / 2, self._grace - _LAST_SECONDS)

    def _places(self) -> dict[str, str]:
        return {"DAGSTER_HOME": str(self._instance.root_directory), "MLOC_HOME": str(Home.current().root)}

    def _start(self, run_id: str, environment: Mapping[str, str]) -> None:
        """Start a worker as a new interpreter and note which process it is."""
        logs = Home.current().logs
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / f"{run_id}.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", WORKER_MODULE, run_id],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment,
            )  # fmt: skip
        threading.Thread(target=worker.wait, daemon=True, name=f"reap-{run_id[:8]}").start()
        run = self._instance.get_run_by_id(run_id)
        if run and worker_of(run) is None:  # else a child of the pool has it, which answered too late
            self._instance.add_run_tags(run_id, {WORKER: worker_tag(worker.pid)})

    def _warn(self, run: DagsterRun, message: str) -> None:
        _log.warning("run %s: %s", run.run_id[:8], message)
        self._instance.report_engine_event(message, run, EngineEventData())


def task_specs_of(run: DagsterRun) -> dict[str, str]:
    """Where the run's code location was loaded from, so that a launcher in another folder finds the same task files."""
    origin = run.remote_job_origin
    location = origin.repository_origin.code_location_origin if origin else None
    target = getattr(location, "loadable_target_origin", None)
    folder = Path(target.working_directory) / "task_specs" if target and target.working_directory else None
    if folder is None or not folder.is_dir() or "MLOC_TASK_SPECS" in os.environ:
        return {}
    return {"MLOC_TASK_SPECS": str(folder)}
