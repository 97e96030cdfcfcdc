"""The process of a run: named by a tag of the run, found again, ended with all that it started."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil
from dagster import DagsterInstance, DagsterRun

from mloc_dagster.store.home import Home

WORKER = "mloc/worker"
"""Run tag `<pid>:<identity of the process>`."""
LAUNCHER = "mloc/launcher"
"""Run tag `<pid>:<identity>:<run id>` of the process that last set out to start the run's worker."""


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


def launcher_tag(run_id: str) -> str:
    """Return the value of the tag LAUNCHER for this process."""
    return f"{worker_tag(os.getpid())}:{run_id}"


def launcher_is_gone(run: DagsterRun) -> bool:
    """Whether the process that set out to start a run's worker has ended; False when nobody has, or none is known."""
    pid, _, rest = run.tags.get(LAUNCHER, "").partition(":")
    identity, _, run_id = rest.rpartition(":")
    return run_id == run.run_id and _identity(int(pid)) != identity


@contextmanager
def only_holder(home: Home, run_id: str, patience: float = 0.0) -> Iterator[bool]:
    """Hold a run as long as the block goes on: a worker executes only what it holds.

    Gives False when it is held by another process, a child that a dying worker has left for a moment included, and
    still is after `patience` seconds.
    """
    path = home.logs / f"{run_id}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        alone = _taken(file, time.monotonic() + patience)
        yield alone
        if alone:
            path.unlink(missing_ok=True)


def _taken(file: IO[str], deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)


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


def end_now(worker: psutil.Process) -> None:
    """Kill a worker and all that it started, also what cannot end softly because it is stopped."""
    _kill({worker, *_descendants(worker)})


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
