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
from dagster import DagsterInstance, DagsterRun, Field
from dagster._config import IntSource
from dagster._core.launcher.base import CheckRunHealthResult, LaunchRunContext, RunLauncher, WorkerStatus
from dagster._serdes import ConfigurableClass, ConfigurableClassData

from mloc_dagster.store.home import Home

WORKER = "mloc/worker"
"""Run tag `<pid>:<identity of the process>`."""


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
        places = {"DAGSTER_HOME": str(root), "MLOC_HOME": str(home.root), **_task_specs(context.dagster_run)}
        environment = {**os.environ, **places}
        with (home.logs / f"{run_id}.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "mloc_dagster.definitions.worker", run_id],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment,
            )  # fmt: skip
        threading.Thread(target=worker.wait, daemon=True, name=f"reap-{run_id[:8]}").start()
        self._instance.add_run_tags(run_id, {WORKER: worker_tag(worker.pid)})

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
        thread = threading.Thread(
            target=_see_to_the_end, args=(self._instance, run_id, worker, self._grace), name=f"end-{run_id[:8]}"
        )
        thread.start()
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Yes: a worker is alive while its process is."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the process that was started is still there.

        A run without a worker is executed by a process that is not ours, such as `dagster job execute`; Dagster's
        monitoring fails whatever is not said to be running, so it is.
        """
        if WORKER not in run.tags:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "not started by this launcher")
        if _worker(run) is not None:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        log = Home.current().logs / f"{run.run_id}.log"
        pid = run.tags[WORKER].partition(":")[0]
        message = f"the worker process {pid} is gone (killed, or out of memory); see {log}"
        return CheckRunHealthResult(WorkerStatus.FAILED, message)


def worker_tag(pid: int) -> str:
    """Return the value of the tag WORKER for a process: no other process, also after a restart, has the same."""
    return f"{pid}:{_identity(pid)}"


def _see_to_the_end(instance: DagsterInstance, run_id: str, worker: psutil.Process, grace: float) -> None:
    """Holds the instance: whoever asked for the end may have let go of it meanwhile."""
    deadline = time.monotonic() + grace
    family = {worker}
    while time.monotonic() < deadline and _alive(worker):
        family |= _descendants(worker)
        time.sleep(0.1)
    _kill(family)
    run = instance.get_run_by_id(run_id)
    if run and not run.is_finished:
        instance.report_run_canceled(run, message="the worker was ended")


def _task_specs(run: DagsterRun) -> dict[str, str]:
    """Where the run's code location was loaded from, so that a launcher in another folder finds the same task files."""
    origin = run.remote_job_origin
    location = origin.repository_origin.code_location_origin if origin else None
    target = getattr(location, "loadable_target_origin", None)
    folder = Path(target.working_directory) / "task_specs" if target and target.working_directory else None
    if folder is None or not folder.is_dir() or "MLOC_TASK_SPECS" in os.environ:
        return {}
    return {"MLOC_TASK_SPECS": str(folder)}


def _worker(run: DagsterRun) -> psutil.Process | None:
    pid, _, identity = run.tags.get(WORKER, "").partition(":")
    if not pid:
        return None
    try:
        process = psutil.Process(int(pid))
        return process if _identity(process.pid) == identity and _alive(process) else None
    except psutil.Error:
        return None


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _identity(pid: int) -> str:
    """When the process started, in clock ticks since this boot; the time of day would move when the clock is set."""
    try:
        ticks = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19]
        return f"{ticks}@{Path('/proc/sys/kernel/random/boot_id').read_text('utf-8').strip()[:8]}"
    except OSError:
        return _started(pid)


def _started(pid: int) -> str:
    try:
        return f"{psutil.Process(pid).create_time():.0f}"
    except psutil.Error:
        return "0"


def _descendants(worker: psutil.Process) -> set[psutil.Process]:
    """All processes below a worker, also those in sessions of their own."""
    try:
        return set(worker.children(recursive=True))
    except psutil.Error:
        return set()


def _kill(family: set[psutil.Process]) -> None:
    for process in family:
        try:
            process.kill()  # psutil refuses when the id belongs to another process by now
        except psutil.Error:
            continue
