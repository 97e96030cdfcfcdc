"""A stage that is forked from the warm process (`executors.warm`), and the start of such a process for the next one.

A stage never waits for a warm process to get ready: without one it starts cold, and one is started beside it.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Literal

import psutil

from executors.warm import surroundings
from executors.warm.messages import Answer, Ask, receive_answer, send
from executors.warm.title import ROOM
from mloc_dagster.processes.sockets import connect
from mloc_dagster.spec.quantity import format_bytes

SWITCH = "MLOC_STAGE_POOL"
IDLE = "MLOC_STAGE_POOL_IDLE"
Kind = Literal["cpu", "gpu"]
"""What a stage computes on: what is loaded depends on it."""

_IDLE_SECONDS = 120.0
_LEAST_MEMORY = 2 << 30
"""Free bytes that there must be for a warm process, which holds 0.6 GiB."""
_ANSWER_SECONDS = 10.0
_CODE_SECONDS = 5.0
_AGAIN_SECONDS = 600.0
"""After a warm process could not be started, how long none is."""


class NotWarm(Exception):
    """There is no warm process that can be forked for a stage; the message says why."""


class WarmStage:
    """A stage that was forked; nobody's child here, and yet its end and exit code are known."""

    def __init__(self, pid: int, process: int, connection: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._process, self._connection = process, connection
        self._end = select.poll()
        self._end.register(process, select.POLLIN)

    def poll(self) -> int | None:
        """Return the exit code (negative: the signal that killed it), or None while it runs."""
        return self._ended_within(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; raises subprocess.TimeoutExpired."""
        code = self._ended_within(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("executors.host", timeout or 0.0)
        return code

    def _ended_within(self, seconds: float | None) -> int | None:
        if self.returncode is None and self._end.poll(None if seconds is None else seconds * 1000):
            self.returncode = self._code()
            self._connection.close()
            os.close(self._process)
        return self.returncode

    def _code(self) -> int:
        """Its own word, or that of the warm process; if both were killed, nobody knows by which signal."""
        self._connection.settimeout(_CODE_SECONDS)
        with suppress(OSError, ValueError):
            return receive_answer(self._connection)[0].code
        return -signal.SIGKILL


def start(
    job: Path,
    log: IO[bytes],
    environment: Mapping[str, str],
    kind: Kind,
    *,
    doors: tuple[str, ...] = (),
    locks: tuple[int, ...] = (),
) -> WarmStage:
    """Fork a stage that is what `python -m executors.host JOB` would be here, and that ends with this process.

    Its output goes to `log`, it enters the control groups behind `doors`, and keeps `locks` open. Raises NotWarm; then
    nothing of the stage has begun.
    """
    if not sys.platform.startswith("linux") or os.environ.get(SWITCH) == "0":
        raise NotWarm(f"{SWITCH} is 0" if os.environ.get(SWITCH) == "0" else "only Linux can fork it")
    try:
        address = surroundings.folder() / f"{surroundings.name(environment, on_gpu=kind == 'gpu')}.sock"
        connection = connect(address)
        if connection is None:
            raise NotWarm(_started(address, environment, kind))
        return _handed_over(connection, _ask(job, environment, doors), log, locks)
    except OSError as error:
        raise NotWarm(f"{type(error).__name__}: {error}") from None
    except ValueError as error:  # whose text may hold values of the environment
        raise NotWarm(f"the warm process and this one do not understand each other ({type(error).__name__})") from None


def stop() -> None:
    """Ask all warm processes of this user to end after the stages that are going on."""
    for address in surroundings.folder().glob("*.sock"):
        connection = connect(address)
        if connection is not None:
            with connection, suppress(OSError, ValueError):
                connection.settimeout(_ANSWER_SECONDS)
                send(connection, Ask(action="stop"))
                receive_answer(connection)


def stages_of(askers: Collection[int]) -> Iterator[psutil.Process]:
    """Yield the stages that were forked for processes: each holds on to its own, to end with it."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if "executors.host" in process.cmdline() and _held(process.pid) & set(askers):
                yield process


def _held(pid: int) -> set[int]:
    """The processes that a process holds on to (pidfd)."""
    found = set()
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(OSError):  # it is closed by now
            lines = dict(line.split(":\t", 1) for line in info.read_text().splitlines() if ":\t" in line)
            found.add(int(lines.get("Pid", "0")))
    return found - {0}


def _ask(job: Path, environment: Mapping[str, str], doors: tuple[str, ...]) -> Ask:
    umask = os.umask(0)
    os.umask(umask)
    return Ask(
        action="run", job=str(job), environment=dict(environment), folder=os.getcwd(), umask=umask, doors=doors
    )  # fmt: skip


def _handed_over(connection: socket.socket, ask: Ask, log: IO[bytes], locks: tuple[int, ...]) -> WarmStage:
    own = os.pidfd_open(os.getpid())
    try:
        connection.settimeout(_ANSWER_SECONDS)
        send(connection, ask, (own, log.fileno(), *locks))
        answer, handles = receive_answer(connection)
        if answer.state != "started":
            raise NotWarm(_why(answer))
        connection.sendall(b"1")
        return WarmStage(answer.pid, handles[0], connection)
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(own)


def _why(answer: Answer) -> str:
    return answer.reason or f"the forked process ended at once, with exit code {answer.code}"


def _started(address: Path, environment: Mapping[str, str], kind: Kind) -> str:
    """Start a warm process beside this stage, if there is room for it; returns what was done, in words."""
    failed = address.with_suffix(".failed")
    if failed.exists() and time.time() - failed.stat().st_mtime < _AGAIN_SECONDS:
        return f"the warm process could not load the libraries; see {address.with_suffix('.log')}"
    free = psutil.virtual_memory().available
    if free < _LEAST_MEMORY:
        return f"{format_bytes(free)} of memory are free, too little for a warm process"
    with address.with_suffix(".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "the warm process is not ready yet"
        _launch(address, environment, kind, lock.fileno())
    return "there is no warm process yet; one gets ready for the next stage"


def _idle_seconds() -> float:
    text = os.environ.get(IDLE) or str(_IDLE_SECONDS)
    try:
        return float(text)
    except ValueError:
        raise NotWarm(f"{IDLE} is {text!r}; write a number of seconds") from None


def _launch(address: Path, environment: Mapping[str, str], kind: Kind, lock: int) -> None:
    idle, devices = str(_idle_seconds()), "0" if kind == "gpu" else ""
    command = [sys.executable, "-u", "-m", "executors.warm", str(address), idle, devices]
    with address.with_suffix(".log").open("wb") as log:
        first = subprocess.Popen(
            [*command, str(lock), ROOM], env=surroundings.loading(environment), cwd="/", pass_fds=(lock,),
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    threading.Thread(target=first.wait, daemon=True, name="reap").start()  # it ends as soon as it has forked
