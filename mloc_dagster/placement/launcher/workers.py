"""The process of a run: named by a tag of the run, found again, ended with all that it started."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import psutil
from dagster import DagsterInstance, DagsterRun

from mloc_dagster.files.atomic import is_at
from mloc_dagster.placement.local.warm import stages_of
from mloc_dagster.store.home import Home

WORKER = "mloc/worker"
"""Run tag `<pid>:<identity of the process>`."""
LAUNCHER = "mloc/launcher"
"""Run tag `<pid>:<identity>:<run id>` of the process that last set out to start the run's worker."""
_MARK = 1.0
"""The time (seconds since the epoch) of the lock file of a run that is to end."""
_held: dict[str, int] = {}
"""File descriptors of the locks of the runs that this process holds."""
_told_to_end: set[str] = set()
"""Runs that this process has let go of, and whose end somebody had asked for by then."""


class _Identity(NamedTuple):
    """What no other process has, also after a restart, and who could know of it."""

    ticks: str
    """When the process started, in clock ticks since the boot; the time of day would move when the clock is set."""
    system: str
    """The boot and the space of process ids: a container has one of its own."""
    host: str

    def __str__(self) -> str:
        return "@".join(self)


def worker_tag(pid: int) -> str:
    """Return the value of the tag WORKER for a process: no other process, also after a restart, has the same."""
    return f"{pid}:{_identity(pid)}"


def worker_of(run: DagsterRun) -> psutil.Process | None:
    """Return the process of a run, or None when it is gone, or on another machine."""
    pid, told = _told(run.tags.get(WORKER, ""))
    if told is None:
        return None
    try:
        process = psutil.Process(pid)
        return process if _is_process(pid, told) and alive(process) else None
    except psutil.Error:
        return None


def is_elsewhere(run: DagsterRun) -> bool:
    """Whether the worker of a run is on another machine, or in another container: nothing is known of it here."""
    return _is_elsewhere(_told(run.tags.get(WORKER, ""))[1])


def launcher_tag(run_id: str) -> str:
    """Return the value of the tag LAUNCHER for this process."""
    return f"{worker_tag(os.getpid())}:{run_id}"


def launcher_is_gone(run: DagsterRun) -> bool:
    """Whether the process that set out to start a run's worker has ended; False when nobody has, or none is known."""
    tag, _, run_id = run.tags.get(LAUNCHER, "").rpartition(":")
    pid, told = _told(tag)
    if run_id != run.run_id or told is None or _is_elsewhere(told):
        return False
    return not _is_process(pid, told)


@contextmanager
def only_holder(home: Home, run_id: str, patience: float = 0.0) -> Iterator[bool]:
    """Hold a run as long as the block goes on: a worker executes only what it holds.

    Gives False when it is held by another process, a child that a dying worker has left for a moment and a stage that
    stores its state included, and still is after `patience` seconds.
    """
    path = home.logs / f"{run_id}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    file, alone = _opened(path, time.monotonic() + patience)
    with file:
        if not alone:
            yield False
            return
        _held[run_id] = file.fileno()
        try:
            yield True
        finally:
            del _held[run_id]
            _let_go(path, file, run_id)


def lock_of(run_id: str) -> int | None:
    """Return the file descriptor of a run's lock, if this process, or one that it was forked from, holds the run.

    Whoever inherits it holds the run, too.
    """
    return _held.get(run_id)


def told_to_end(run_id: str) -> bool:
    """Whether someone meant this process when it still held a run that it has let go of since: it may yet be killed."""
    return run_id in _told_to_end


def still_has(home: Home, run_id: str, worker: psutil.Process) -> bool:
    """Whether a run's worker still has it: a child of the pool may have gone on to another one."""
    return _has(home.logs / f"{run_id}.lock", run_id, worker)


def tell_to_end(home: Home, run_id: str, worker: psutil.Process) -> bool:
    """Tell a worker that its run is to end, so that it goes on to no other; False when it has let go of it already.

    The mark on the lock file comes before the look at who has it, and the worker looks for the mark after it has let
    go: one of the two sees the other. The mark is the file's time, which takes no room on a full disk.
    """
    path = home.logs / f"{run_id}.lock"
    with suppress(OSError):
        os.utime(path, (_MARK, _MARK))
    return _has(path, run_id, worker)


def _has(lock: Path, run_id: str, worker: psutil.Process) -> bool:
    with suppress(OSError, psutil.Error), lock.open("rb") as file:  # open, so that its number is not given away
        if any(_is_open_as(descriptor, file) for descriptor in Path(f"/proc/{worker.pid}/fd").iterdir()):
            return True
    with suppress(psutil.Error):
        return run_id in worker.cmdline()  # it was started for this run, and may not have come to hold it
    return False


def _is_open_as(descriptor: Path, file: IO[Any]) -> bool:
    try:
        found, wanted = descriptor.stat(), os.fstat(file.fileno())
    except OSError:  # it is closed by now
        return False
    return (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)


def _let_go(path: Path, file: IO[str], run_id: str) -> None:
    """Remove the lock's file, let go of the lock, and only then look whether the run was to end (`tell_to_end`)."""
    try:
        seen = os.open(path, os.O_RDONLY)
    except OSError:  # the home is gone, or there are too many files
        _told_to_end.add(run_id)
        path.unlink(missing_ok=True)
        return
    path.unlink(missing_ok=True)
    file.close()
    if os.fstat(seen).st_mtime == _MARK:
        _told_to_end.add(run_id)
    os.close(seen)


def _opened(path: Path, deadline: float) -> tuple[IO[str], bool]:
    """Open a lock file and take its lock; one that its holder has removed meanwhile is nobody's, and opened anew."""
    while True:
        file = path.open("a")
        taken = _taken(file, deadline)
        if not taken or is_at(file, path):
            return file, taken
        file.close()


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


def end_now(home: Home, run_id: str, worker: psutil.Process | None) -> None:
    """Kill a worker, all that it started (what is stopped cannot end softly), and what of the run outlived it."""
    family = {worker, *_descendants(worker)} if worker and tell_to_end(home, run_id, worker) else set()
    _kill(family | set(_holders(home.logs / f"{run_id}.lock")))


def _holders(lock: Path) -> Iterator[psutil.Process]:
    """The processes that hold the lock of a run; those that only wait for it do not."""
    try:
        file = lock.open("rb")
    except OSError:
        return
    with file:
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if _holds(process.pid, file):
                    yield process


def _holds(pid: int, file: IO[Any]) -> bool:
    """Whether a process has a file open whose lock it, or one that it was forked from, has taken (proc(5), fdinfo)."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        if _is_open_as(descriptor, file):
            with suppress(OSError):
                if "FLOCK" in Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text():
                    return True
    return False


def _told(tag: str) -> tuple[int, _Identity | None]:
    """A pid and an identity as a tag tells them; 0 and None without one."""
    pid, _, identity = tag.partition(":")
    ticks, _, place = identity.partition("@")
    system, _, host = place.partition("@")
    return (int(pid), _Identity(ticks, system, host)) if pid.isdigit() else (0, None)


def _is_process(pid: int, told: _Identity) -> bool:
    """Whether the process that has an id here is the one that was told; older tags name the boot alone."""
    here = _identity(pid)
    system = here.system if told.host else here.system.partition(".")[0]
    return (here.ticks, system) == (told.ticks, told.system)


def _is_elsewhere(told: _Identity | None) -> bool:
    """Whether a process belongs to another system; one of this host that has booted since is gone."""
    if told is None or not told.host:
        return False
    here = _identity(os.getpid())
    return told.system != here.system and told.host != here.host


def _identity(pid: int) -> _Identity:
    try:
        ticks = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()[:8]
        return _Identity(ticks, f"{boot}.{os.stat('/proc/self/ns/pid').st_ino}", socket.gethostname())
    except OSError:
        return _Identity(_started(pid), "", socket.gethostname())


def _started(pid: int) -> str:
    try:
        return f"{psutil.Process(pid).create_time():.0f}"
    except psutil.Error:
        return "0"


def _descendants(worker: psutil.Process) -> set[psutil.Process]:
    """All processes below a worker, also those in sessions of their own, and below stages that started warm."""
    found, seen = {worker}, set()
    while found != seen:
        seen = set(found)
        for process in seen:
            with suppress(psutil.Error):
                found.update(process.children(recursive=True))
        found.update(stages_of({process.pid for process in found}))
    return found - {worker}


def _kill(family: set[psutil.Process]) -> None:
    for process in family:
        try:
            process.kill()  # psutil refuses when the id belongs to another process by now
        except psutil.Error:
            continue
