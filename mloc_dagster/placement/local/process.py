"""One piece of work in its own process group: started, watched, and ended as a whole."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from executors.cgroup import Cgroup
from executors.heartbeat import BEATS
from executors.parent import PARENT
from mloc_dagster.placement.failures.silence import Pulse, Silence
from mloc_dagster.spec.base import Json

TERMINATE_GRACE_SECONDS = float(os.environ.get("MLOC_TERMINATE_GRACE_SECONDS", "30"))
_POLL_SECONDS = 0.05
_FEEL_SECONDS = 0.5

Report = Callable[[dict[str, Json]], None]


@dataclass(frozen=True)
class Ended:
    """How the work ended: exit code, and whether we ended it: for its time limit, cancelled, or for its silence.

    `out_of_memory`: the kernel killed some of it at its bound of memory.
    """

    code: int
    timed_out: bool = False
    cancelled: bool = False
    silent: bool = False
    out_of_memory: bool = False


def run_job(
    job: Path,
    logs: Path,
    *,
    report: Report,
    cancelled: Callable[[], bool],
    timeout: float | None,
    lost_after: float | None = None,
    memory_bytes: int | None = None,
    lock: int | None = None,
) -> Ended:
    """Run `python -m executors.host JOB` to its end; progress lines go to `report` as they appear.

    Ends the whole process group (SIGTERM, a grace period to write a checkpoint, SIGKILL) when `cancelled` turns true,
    when `timeout` seconds have passed, or when this call is interrupted. Kills it when it gave no sign of life for
    `lost_after` seconds. It gets `memory_bytes` at most, where this user can make a control group. The work holds on to
    the file descriptor `lock`: should this process be killed, the lock stays until the work has ended.
    """
    logs.mkdir(parents=True, exist_ok=True)
    progress = _Tail(logs / "progress.jsonl")
    command = [sys.executable, "-u", "-m", "executors.host", str(job)]
    group = Cgroup.make(memory_bytes=memory_bytes) if memory_bytes else None
    with (logs / "stdout.log").open("ab") as output:
        child = subprocess.Popen(
            group.entering(command) if group else command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**_environment(), PARENT: str(os.getpid())},
            pass_fds=() if lock is None else (lock,),
        )
    deadline = time.monotonic() + timeout if timeout else None
    watch = _Watch(child.pid, logs / BEATS, lost_after)
    try:
        while child.poll() is None:
            progress.read(report)
            if cancelled():
                return Ended(end_group(child), cancelled=True)
            if deadline and time.monotonic() > deadline:
                return Ended(end_group(child), timed_out=True)
            if watch.lost():
                _signal(child.pid, signal.SIGKILL)  # what does not run cannot end softly
                return Ended(end_group(child), silent=True)
            _wait(child)
        progress.read(report)
        return Ended(child.returncode, out_of_memory=bool(group and group.kills()))
    finally:
        end_group(child)
        if group:
            group.end()


def end_group(child: subprocess.Popen[bytes]) -> int:
    """End a process and all of its group; returns its exit code."""
    if child.poll() is None:
        _signal(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(TERMINATE_GRACE_SECONDS)
    _signal(child.pid, signal.SIGKILL)
    return child.wait()


def last_lines(path: Path, count: int = 30) -> str:
    """Return the last lines of a log for an error message."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16_384))
            return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-count:])
    except OSError:
        return ""


class _Watch:
    """Feels the pulse of a process now and then."""

    def __init__(self, pid: int, beats: Path, lost_after: float | None) -> None:
        self._pulse, self._silence, self._felt = Pulse(pid, beats), Silence(lost_after), time.monotonic()

    def lost(self) -> bool:
        """Whether it has been silent for too long."""
        if time.monotonic() - self._felt < _FEEL_SECONDS:
            return False
        self._felt = time.monotonic()
        return self._silence.over(self._pulse.felt())


class _Tail:
    """Complete lines that were appended to a JSON-lines file since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def read(self, report: Report) -> None:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                block = file.read()
        except OSError:
            return
        whole, newline, _ = block.rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        for line in whole.splitlines():
            value = _parsed(line)
            if isinstance(value, dict):
                report(value)


def _parsed(line: bytes) -> Json:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _wait(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(_POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return


def _signal(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return


def _environment() -> dict[str, str]:
    """The environment without Dagster's own settings; PYTHONPATH lets the child find this code in any folder."""
    root = str(Path(__file__).parents[3])
    path = os.pathsep.join(dict.fromkeys([root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]))
    kept = {key: value for key, value in os.environ.items() if not key.startswith("DAGSTER_")}
    return {"OMP_WAIT_POLICY": "PASSIVE", **kept, "PYTHONPATH": path}
