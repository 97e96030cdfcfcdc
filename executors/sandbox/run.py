"""Runs one command contained."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from executors.base import ExecutorError
from executors.cgroup import Cgroup
from executors.sandbox.backend import Backend, chosen
from executors.sandbox.ended import Cause, Ended
from executors.sandbox.limits import MIB, Limits
from executors.sandbox.output import Output
from executors.sandbox.view import environment, python, view_of
from executors.sandbox.watch import Watch, disk_use

_LOOK_SECONDS = 0.05
_SLACK_BYTES = 32 * MIB
"""What the sandbox and the kernel themselves need, beyond the memory that is watched."""
_LAST_WORDS: tuple[tuple[str, Cause], ...] = (
    (r"\bMemoryError\b|Cannot allocate memory|std::bad_alloc|memory exhausted", "memory"),
    (r"File too large|No space left on device", "disk"),
    (r"Resource temporarily unavailable|Cannot fork|can't start new thread", "processes"),
)


def run(command: Sequence[str] | str, *, work: Path, limits: Limits, stdin: str = "") -> Ended:
    """Run a command (a list) or Python source (a text) in `work`, and end all that it started.

    In the sandbox there is no network, no environment but PATH, HOME and the like, and of the machine only the system's
    programs and this Python, read-only; `work` (at its own path) and `/tmp` are writable. Never raises for what the
    command does; raises ExecutorError when there is no sandbox or nothing to run. Files that it leaves in `work` are
    not to be trusted: a link there may point anywhere, so open them without following links.
    """
    backend = chosen()
    scratch = Path(tempfile.mkdtemp(prefix="mloc-sandbox-"))
    try:
        view = view_of(work, scratch)
        seen = "/tmp" if backend.contained else str(scratch)
        line = backend.command(view, _limited(_command(command, scratch, seen), limits, backend))
        return _run(line, backend, view.work, scratch, environment(view.work, seen), limits, stdin)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # never follows a link, unlike TemporaryDirectory's way with modes


def contained(command: Sequence[str], *, work: Path, scratch: Path, limits: Limits) -> tuple[list[str], dict[str, str]]:
    """Return the command line and the environment that run a command contained, for a caller that talks to it.

    Whoever starts it ends it. Only the limits of each process hold: nobody watches time, disk and memory of all.
    """
    backend = chosen()
    view = view_of(work, scratch)
    seen = "/tmp" if backend.contained else str(scratch)
    return backend.command(view, _limited(list(command), limits, backend)), environment(view.work, seen)


def _run(
    line: list[str], backend: Backend, work: Path, scratch: Path, env: dict[str, str], limits: Limits, stdin: str
) -> Ended:
    before = disk_use((work, scratch))
    group = Cgroup.make(memory_bytes=limits.memory_bytes + _SLACK_BYTES, processes=_most(limits))
    started = time.monotonic()
    process = subprocess.Popen(
        group.entering(line) if group else line, cwd=work, env=env, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin and process.stdout and process.stderr
    outputs = Output(process.stdout, limits.output_bytes), Output(process.stderr, limits.output_bytes)
    threading.Thread(target=_feed, args=(process.stdin, stdin), daemon=True).start()
    watch = Watch(process.pid, (work, scratch), limits, before, backend.overhead, group)
    try:
        cause = _wait(process, outputs, watch, started + limits.seconds) or watch.kernel_breach()
    finally:
        _kill(process)
        if group:
            group.end()
    stdout, stderr = (output.text() for output in outputs)
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    return Ended(
        exit_code=code,
        stdout=stdout,
        stderr=stderr,
        seconds=round(time.monotonic() - started, 3),
        ended_by=cause or watch.disk_breach() or _told(code, stderr),
        backend=backend.name,
    )


def _command(command: Sequence[str] | str, scratch: Path, seen: str) -> list[str]:
    if not command:
        raise ExecutorError("There is no command to run in the sandbox.", "Give a command line or Python source.")
    if not isinstance(command, str):
        return list(command)
    (scratch / "main.py").write_text(command, encoding="utf-8")
    return [python(), f"{seen}/main.py"]


def _limited(command: list[str], limits: Limits, backend: Backend) -> list[str]:
    """The command with the kernel's limits set right before it."""
    bounds = {
        "RLIMIT_CPU": [limits.cpu_seconds, limits.cpu_seconds + 1],
        "RLIMIT_DATA": [limits.memory_bytes] * 2,
        "RLIMIT_FSIZE": [limits.file_bytes] * 2,
        "RLIMIT_CORE": [0, 0],
    }
    if backend.contained and _counts_by_namespace():
        bounds["RLIMIT_NPROC"] = [limits.processes + backend.overhead] * 2
    text = Path(__file__).with_name("inside.py").read_text(encoding="utf-8")
    return [python(), "-I", "-S", "-c", text, json.dumps(bounds), *command]


def _counts_by_namespace() -> bool:
    """Since Linux 5.14 RLIMIT_NPROC counts a user namespace's own processes; before, all that the user has.

    It never binds root, whom the control group does.
    """
    found = re.match(r"(\d+)\.(\d+)", platform.release())
    return found is not None and (int(found[1]), int(found[2])) >= (5, 14)


def _most(limits: Limits) -> int:
    """Where the kernel stops a flood of processes until the watch sees it; threads count here, but not there."""
    return 2 * limits.processes + 64


def _feed(pipe: IO[bytes], text: str) -> None:
    with suppress(OSError):
        pipe.write(text.encode())
    with suppress(OSError):
        pipe.close()


def _wait(process: subprocess.Popen[bytes], outputs: tuple[Output, Output], watch: Watch, end: float) -> Cause | None:
    """Wait for the end; returns the limit that was exceeded first."""
    while True:
        try:
            process.wait(_LOOK_SECONDS)
            return None
        except subprocess.TimeoutExpired:
            pass
        cause = "time" if time.monotonic() > end else watch.breach()
        if cause or any(output.flooded for output in outputs):
            return cause or "output"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process group; with a process namespace everything in it ends too."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _told(code: int, stderr: str) -> Cause | None:
    """The limit that the kernel's signal or the command's own last words name."""
    by_signal: dict[int, Cause] = {128 + signal.SIGXCPU: "time", 128 + signal.SIGXFSZ: "disk"}
    if code == 0 or code in by_signal:
        return by_signal.get(code)
    last = "\n".join(stderr.strip().splitlines()[-5:])
    return next((cause for pattern, cause in _LAST_WORDS if re.search(pattern, last)), None)
