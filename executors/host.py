"""Runs one job in a process of its own: `python -m executors.host JOB.json`.

Leaves `<out>/result.json` (exit 0) or `<out>/error.json` `{kind: user|internal, message, hint, traceback?}` (exit 2
for the user's faults, 1 for others). SIGTERM asks the executor to store its state (exit 143); a second one ends it at
once. The process dies with its parent, and takes along the processes that it started.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path

from executors.base import Executor, ExecutorError, Interrupted, Result
from executors.context import TaskContext
from executors.distributed.launch import launch
from executors.distributed.layout import Layout, is_rank, layout_of, visible
from executors.job import Job
from executors.parent import end_with_parent
from executors.registry import find, missing_library
from executors.resolution import check_plugin_section, resolved_context
from executors.secrets import HidingStream, Secrets
from mloc_dagster.files.atomic import write_text
from mloc_dagster.spec.base import Json

OK, INTERNAL_FAULT, USER_FAULT, STOPPED = 0, 1, 2, 143
_LONGEST_GRACE_SECONDS = 15 + int(float(os.environ.get("MLOC_TERMINATE_GRACE_SECONDS") or 30))
"""After SIGTERM; a little longer than the run's worker waits before it kills."""


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
    result = _run_here(executor, ctx) if is_rank() else _run(executor, ctx, job)
    return Result.model_validate(secrets.hide(result.model_dump()))


def _run(executor: type[Executor], ctx: TaskContext, job: Job) -> Result:
    """Run the executor here, or in several processes where it can do that and the stage asks for it."""
    if ctx.devices:
        from executors.serving.engines import free_devices

        free_devices(ctx)
    layout = layout_of(ctx.spec, ctx.devices) if getattr(executor, "distributed", False) else Layout()
    if layout.devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible(layout.devices)
    result = launch(job, layout, ctx.stop) if layout.needs_torchrun else _run_here(executor, ctx)
    shutil.rmtree(job.out / ".cache", ignore_errors=True)
    return result


def _run_here(executor: type[Executor], ctx: TaskContext) -> Result:
    try:
        return executor().run(ctx)
    except ImportError as error:
        raise missing_library(error, ctx.spec.task_type) from error
    finally:
        ctx.progress.flush()


def main(arguments: list[str]) -> int:
    """Run the job file that is named; returns the exit code."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    end_with_parent(signal.SIGTERM)
    if len(arguments) != 1:
        print("usage: python -m executors.host JOB.json", file=sys.stderr)
        return USER_FAULT
    job = Job.read(Path(arguments[0]))
    for name in ("result.json", "error.json"):
        (job.out / name).unlink(missing_ok=True)
    return carry_out(job)


def carry_out(job: Job, *, keep_result: bool = True) -> int:
    """Run a job and leave its result or error as files; returns the exit code.

    Of several processes that train together only the first keeps the result.
    """
    _prepare_environment(job)
    secrets = Secrets(dict(os.environ))
    stop = _stop_on_sigterm()
    sys.stdout, sys.stderr = HidingStream(sys.stdout, secrets), HidingStream(sys.stderr, secrets)
    try:
        return _outcome(job, secrets, stop, keep_result)
    finally:
        sys.stdout.close_line()
        sys.stderr.close_line()
        _end_children()


def _outcome(job: Job, secrets: Secrets, stop: threading.Event, keep_result: bool) -> int:
    try:
        result = execute(job, secrets, stop)
    except ExecutorError as error:
        _write_error(job.out, secrets, {"kind": "user", "message": error.what, "hint": error.hint})
        return USER_FAULT
    except (Interrupted, KeyboardInterrupt):
        print("stopped on request; what was stored is continued by the next attempt")
        return STOPPED
    except BaseException as error:
        if stop.is_set():
            return STOPPED
        trace = traceback.format_exc()
        message = f"{type(error).__name__}: {error}"
        _write_error(job.out, secrets, {"kind": "internal", "message": message, "hint": "", "traceback": trace})
        print(trace, file=sys.stderr)
        return INTERNAL_FAULT
    if keep_result:
        write_text(job.out / "result.json", result.model_dump_json(indent=1))
    return OK


def _write_error(out: Path, secrets: Secrets, error: Mapping[str, Json]) -> None:
    print(f"{error['message']}\n{error['hint']}", file=sys.stderr)
    write_text(out / "error.json", json.dumps(secrets.hide(error), ensure_ascii=False, indent=1))


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

    def on_signal(number: int, frame: object) -> None:
        if stop.is_set():
            _end_children()
            os._exit(STOPPED)
        stop.set()
        signal.alarm(_LONGEST_GRACE_SECONDS)  # nobody may be left to end this process when it does not end itself

    signal.signal(signal.SIGTERM, on_signal)
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
