"""Runs one job in a process of its own: `python -m executors.host JOB.json`.

Leaves `<out>/result.json` (exit 0) or `<out>/error.json` `{kind: user|internal, message, hint, traceback?}` (exit 2
for the user's faults, 1 for others). SIGTERM asks the executor to store its state (exit 143); a second one ends it at
once. The process dies with its parent, and takes along the processes that it started.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

from executors.attempt import USER_FAULT, attempt, run_here
from executors.base import Executor, Interrupted, Result
from executors.context import TaskContext
from executors.distributed.launch import launch
from executors.distributed.layout import Layout, is_rank, layout_of, visible
from executors.heartbeat import BEATS, beat
from executors.job import Job
from executors.parent import PARENT, end_with_parent
from executors.registry import find
from executors.resolution import check_plugin_section, resolved_context
from executors.secrets import HidingStream, Secrets
from executors.stopping import STOPPED, grace_seconds, on_sigterm


def _nothing() -> None:
    """All is prepared in a process that has loaded nothing yet."""


def execute(job: Job, secrets: Secrets | None = None, stop: threading.Event | None = None) -> Result:
    """Run a job in this process and return its result, secrets hidden.

    Raises ExecutorError for the user's faults and Interrupted when `stop` was set.
    """
    secrets = Secrets(os.environ) if secrets is None else secrets
    if job.fresh:
        _start_over(job.out)
    job.out.mkdir(parents=True, exist_ok=True)
    ctx = resolved_context(job, secrets, stop or threading.Event())
    executor = find(ctx.spec.task_type)
    check_plugin_section(executor, ctx, secrets)
    if ctx.stop.is_set():
        raise Interrupted
    result = run_here(executor, ctx) if is_rank() else _run(executor, ctx, job, secrets)
    return Result.model_validate(secrets.hide(result.model_dump()))


def _run(executor: type[Executor], ctx: TaskContext, job: Job, secrets: Secrets) -> Result:
    """Run the executor here, or in several processes where it can do that and the stage asks for it."""
    if ctx.devices:
        from executors.serving.engines import free_devices

        free_devices(ctx)
    layout = layout_of(ctx.spec, ctx.devices) if getattr(executor, "distributed", False) else Layout()
    if layout.devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible(layout.devices)
    if ctx.spec.parallel.enabled and hasattr(executor, "merged"):
        from executors.sharding.launch import Sharded, run_sharded

        result = run_sharded(cast("type[Sharded]", executor), ctx, secrets)
    else:
        result = launch(job, layout, ctx.stop) if layout.needs_torchrun else run_here(executor, ctx)
    shutil.rmtree(job.out / ".cache", ignore_errors=True)
    return result


def main(arguments: list[str]) -> int:
    """Run the job file that is named; returns the exit code."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    end_with_parent(signal.SIGTERM, int(os.environ.pop(PARENT, "0")) or None)
    return run(arguments)


def run(arguments: list[str], prepared: Callable[[], None] = _nothing) -> int:
    """Run the job file that is named, in a process that is set up; calls `prepared` when the environment is, too."""
    if len(arguments) != 1:
        print("usage: python -m executors.host JOB.json", file=sys.stderr)
        return USER_FAULT
    job = Job.read(Path(arguments[0]))
    beat(job.out / "logs" / BEATS)
    for name in ("result.json", "error.json"):
        (job.out / name).unlink(missing_ok=True)
    return carry_out(job, prepared=prepared)


def carry_out(job: Job, *, keep_result: bool = True, prepared: Callable[[], None] = _nothing) -> int:
    """Run a job and leave its result or error as files; returns the exit code.

    Of several processes that train together only the first keeps the result.
    """
    _prepare_environment(job)
    prepared()
    secrets = Secrets(dict(os.environ))
    stop = _stop_on_sigterm()
    sys.stdout, sys.stderr = HidingStream(sys.stdout, secrets), HidingStream(sys.stderr, secrets)
    try:
        return attempt(lambda: execute(job, secrets, stop), job.out, secrets, stop, keep_result=keep_result)
    finally:
        sys.stdout.close_line()
        sys.stderr.close_line()
        _end_children()


def _start_over(out: Path) -> None:
    """Remove what an earlier attempt left, except the logs and job files beside it."""
    for entry in out.glob("*"):
        if entry.is_dir() and not entry.is_symlink() and entry.name != "logs":
            shutil.rmtree(entry)


def _prepare_environment(job: Job) -> None:
    """Show libraries only the granted devices, keep them off the network and their caches inside `out`."""
    job.out.mkdir(parents=True, exist_ok=True)
    if not is_rank():  # torchrun was given a share of the devices
        os.environ["CUDA_VISIBLE_DEVICES"] = visible(() if job.on_cpu else job.devices)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_DATASETS_OFFLINE"] = "1"
    os.environ["HF_DATASETS_CACHE"] = str(job.out / ".cache" / "datasets")
    os.environ["HF_MODULES_CACHE"] = str(job.out / ".cache" / "modules")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _speak_directly_to_this_machine()


def _speak_directly_to_this_machine() -> None:
    """Engines listen on loopback: what is said to them, tokens too, is not for a proxy."""
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [known, "127.0.0.1,localhost,::1"]))


def _stop_on_sigterm() -> threading.Event:
    stop = threading.Event()
    longest = 15 + int(grace_seconds())
    """Seconds after SIGTERM; a little longer than the run's worker waits before it kills."""

    def end() -> None:
        _end_children()
        os._exit(STOPPED)

    def ask() -> None:
        signal.alarm(longest)  # nobody may be left to end this process when it does not end itself
        stop.set()

    on_sigterm(ask, end)
    return stop


def _end_children() -> None:
    """Kill what is left of the own process group, such as the engine processes of vLLM."""
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        try:
            if pid != os.getpid() and os.getpgid(pid) == os.getpid():
                os.kill(pid, signal.SIGKILL)
        except OSError:
            continue


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.__stdout__.flush() if sys.__stdout__ else None
    os._exit(code)
