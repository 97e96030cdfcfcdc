"""The process of a run: named by a tag of the run, found again, ended with all that it started."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
from dagster import DagsterInstance, DagsterRun

WORKER = "mloc/worker"
"""Run tag `<pid>:<identity of the process>`."""


def worker_tag(pid: int) -> str:
    """Return the value of the tag WORKER for a process: no other process, also after a restart, has the same."""
    return f"{pid}:{_identity(pid)}"


def worker_of(run: DagsterRun) -> psutil.Process | None:
    """Return the process of a run, or None when it is gone."""
    pid, _, identity = run.tags.get(WORKER, "").partition(":")
    if not pid:
        return None
    try:
        process = psutil.Process(int(pid))
        return process if _identity(process.pid) == identity and alive(process) else None
    except psutil.Error:
        return None


def alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def see_to_the_end(instance: DagsterInstance, run_id: str, worker: psutil.Process, grace: float) -> None:
    """Wait `grace` seconds for a worker that was asked to end, then kill it and all that it started.

    Holds the instance: whoever asked for the end may have let go of it meanwhile.
    """
    deadline = time.monotonic() + grace
    family = {worker}
    while time.monotonic() < deadline and alive(worker):
        family |= _descendants(worker)
        time.sleep(0.1)
    _kill(family)
    run = instance.get_run_by_id(run_id)
    if run and not run.is_finished:
        instance.report_run_canceled(run, message="the worker was ended")


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
