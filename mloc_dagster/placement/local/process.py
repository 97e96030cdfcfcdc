"""One piece of work in its own process group: started, watched, and ended as a whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from executors.cgroup import Cgroup
from executors.group import Process, end_group, signal_group
from executors.heartbeat import BEATS, Pulse
from executors.parent import PARENT
from executors.progress import ProgressTail
from executors.stopping import grace_seconds
from mloc_dagster.placement.failures.silence import Silence
from mloc_dagster.placement.local.warm import Kind, NotWarm, start
from mloc_dagster.spec.base import Json

_POLL_SECONDS = 0.05
_FEEL_SECONDS = 0.5

Report = Callable[[dict[str, Json]], None]


@dataclass(frozen=True)
class Ended:
    """How the work ended: exit code, and whether we ended it: for its time limit, cancelled, or for its silence.

    `out_of_memory`: the kernel killed some of it at its bound of memory; `machine_out_of_memory`: it killed something
    on this machine meanwhile.
    """

    code: int
    timed_out: bool = False
    cancelled: bool = False
    silent: bool = False
    out_of_memory: bool = False
    machine_out_of_memory: bool = False


def run_job(
    job: Path,
    logs: Path,
    *,
    report: Report,
    cancelled: Callable[[], bool],
    timeout: float | None,
    lost_after: float | None = None,
    memory_bytes: int | None = None,
    locks: tuple[int, ...] = (),
    warm: Kind | None = None,
) -> Ended:
    """Run `python -m executors.host JOB` to its end; progress lines go to `report` as they appear.

    Ends the whole process group (SIGTERM, a grace period to write a checkpoint, SIGKILL) when `cancelled` turns true,
    when `timeout` seconds have passed, or when this call is interrupted. Kills it when it gave no sign of life for
    `lost_after` seconds. It gets `memory_bytes` at most, where this user can make a control group. The work holds on to
    the file descriptors `locks`: should this process be killed, they stay locked until the work has ended. With `warm`
    it is forked from a process that has the libraries loaded, if there is one. Raises ValueError, with a message for
    people, when MLOC_TERMINATE_GRACE_SECONDS is no number.
    """
    grace = grace_seconds()
    logs.mkdir(parents=True, exist_ok=True)
    progress = ProgressTail(logs / "progress.jsonl")
    group = Cgroup.make(memory_bytes=memory_bytes) if memory_bytes else None
    with (logs / "stdout.log").open("ab") as output:
        child = _start(job, output, group, locks, warm)
    deadline = time.monotonic() + timeout if timeout else None
    watch = _Watch(child.pid, logs / BEATS, lost_after)
    try:
        while child.poll() is None:
            progress.read(report)
            if cancelled():
                return Ended(end_group(child, grace), cancelled=True)
            if deadline and time.monotonic() > deadline:
                return Ended(end_group(child, grace), timed_out=True)
            if watch.lost():
                signal_group(child.pid, signal.SIGKILL)  # what does not run cannot end softly
                return Ended(end_group(child, grace), silent=True)
            _wait(child)
        progress.read(report)
        return Ended(child.wait(), out_of_memory=bool(group and group.kills()))
    finally:
        end_group(child, grace)
        if group:
            group.end()


def last_lines(path: Path, count: int = 30) -> str:
    """Return the last lines of a log for an error message."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16_384))
            return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-count:])
    except OSError:
        return ""


def _start(job: Path, output: IO[bytes], group: Cgroup | None, locks: tuple[int, ...], warm: Kind | None) -> Process:
    """Fork the work, or start a new interpreter for it; why it is not forked is in its log."""
    environment = _environment()
    if warm is not None:
        try:
            return start(job, output, environment, warm, doors=group.doors if group else (), locks=locks)
        except NotWarm as why:
            output.write(f"mloc: a cold start: {why}\n".encode())
            output.flush()
    command = [sys.executable, "-u", "-m", "executors.host", str(job)]
    return subprocess.Popen(
        group.entering(command) if group else command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**environment, PARENT: str(os.getpid())},
        pass_fds=locks,
    )


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


def _wait(child: Process) -> None:
    try:
        child.wait(_POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return


def _environment() -> dict[str, str]:
    """The environment without Dagster's own settings; PYTHONPATH lets the child find this code in any folder."""
    root = str(Path(__file__).parents[3])
    path = os.pathsep.join(dict.fromkeys([root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]))
    kept = {key: value for key, value in os.environ.items() if not key.startswith("DAGSTER_")}
    return {"OMP_WAIT_POLICY": "PASSIVE", **kept, "PYTHONPATH": path}
