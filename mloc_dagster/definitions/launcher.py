"""Runs on this machine: each in a worker process of its own that outlives whoever started it."""

from __future__ import annotations

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
from dagster import DagsterRun, Field
from dagster._config import IntSource
from dagster._core.launcher.base import CheckRunHealthResult, LaunchRunContext, RunLauncher, WorkerStatus
from dagster._serdes import ConfigurableClass, ConfigurableClassData

from mloc_dagster.store.home import Home

WORKER = "mloc/worker"
"""Run tag `<pid>:<start time of the process>`."""


class LocalRunLauncher(RunLauncher, ConfigurableClass):
    """Starts `python -m mloc_dagster.definitions.worker RUN_ID` in a session of its own.

    `terminate_grace_seconds`: time that work has to write a checkpoint after SIGTERM before it is killed.
    """

    def __init__(self, terminate_grace_seconds: int = 60, inst_data: ConfigurableClassData | None = None) -> None:
        self._inst_data = inst_data
        self._grace = terminate_grace_seconds
        super().__init__()

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """The configuration that it was made from."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """What `dagster.yaml` may set."""
        return {"terminate_grace_seconds": Field(IntSource, is_required=False, default_value=60)}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> LocalRunLauncher:
        """Make one from `dagster.yaml`."""
        return cls(inst_data=inst_data, **config_value)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Start the worker and note which process it is."""
        run_id = context.dagster_run.run_id
        home = Home.current()
        home.logs.mkdir(parents=True, exist_ok=True)
        root = Path(self._instance.root_directory)
        environment = {**os.environ, "DAGSTER_HOME": str(root), "MLOC_HOME": str(home.root)}
        with (home.logs / f"{run_id}.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "mloc_dagster.definitions.worker", run_id],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment,
            )  # fmt: skip
        threading.Thread(target=worker.wait, daemon=True, name=f"reap-{run_id[:8]}").start()
        self._instance.add_run_tags(run_id, {WORKER: f"{worker.pid}:{_started(worker.pid)}"})

    def terminate(self, run_id: str) -> bool:
        """Ask the worker to end its work, and kill the whole session when it has not after the grace period."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        worker = _worker(run)
        if worker is None:
            self._instance.report_run_canceled(run, message="the worker was gone already")
            return True
        worker.send_signal(signal.SIGTERM)
        watcher = threading.Thread(target=self._see_to_the_end, args=(run_id, worker), daemon=False, name=f"end-{run_id[:8]}")
        watcher.start()
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Yes: a worker is alive while its process is."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the process that was started is still there."""
        if WORKER not in run.tags:
            return CheckRunHealthResult(WorkerStatus.UNKNOWN, "the worker has not been noted yet")
        if _worker(run) is not None:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, f"the worker process {run.tags[WORKER].partition(':')[0]} is gone")

    def _see_to_the_end(self, run_id: str, worker: psutil.Process) -> None:
        deadline = time.monotonic() + self._grace
        while time.monotonic() < deadline:
            if not _alive(worker):
                break
            time.sleep(0.1)
        else:
            _kill_session(worker.pid)
        run = self._instance.get_run_by_id(run_id)
        if run and not run.is_finished:
            self._instance.report_run_canceled(run, message="the worker was ended")


def _worker(run: DagsterRun) -> psutil.Process | None:
    pid, _, started = run.tags.get(WORKER, "").partition(":")
    if not pid:
        return None
    try:
        process = psutil.Process(int(pid))
        same = f"{process.create_time():.2f}" == started
        return process if same and _alive(process) else None
    except psutil.Error:
        return None


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _started(pid: int) -> str:
    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return "0"


def _kill_session(pid: int) -> None:
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == pid:
                process.kill()
        except (OSError, psutil.Error):
            continue
