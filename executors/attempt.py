"""One attempt at a piece of work in this process; its result or its error stays as a file."""

from __future__ import annotations

import json
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from executors.base import Executor, ExecutorError, Exhausted, Interrupted, Result
from executors.context import TaskContext
from executors.registry import missing_library
from executors.secrets import Secrets
from executors.stopping import STOPPED
from mloc_dagster.files.atomic import write_text
from mloc_dagster.spec.base import Json

OK, INTERNAL_FAULT, USER_FAULT = 0, 1, 2


def run_here(executor: type[Executor], ctx: TaskContext) -> Result:
    """Run an executor; raises ExecutorError also for a library that is missing."""
    try:
        return executor().run(ctx)
    except ImportError as error:
        raise missing_library(error, ctx.spec.task_type) from error
    finally:
        ctx.progress.flush()


def attempt(
    work: Callable[[], Result], out: Path, secrets: Secrets, stop: threading.Event, *, keep_result: bool = True
) -> int:
    """Do the work, leave `<out>/result.json` or `<out>/error.json`, and return the exit code."""
    try:
        result = work()
    except ExecutorError as error:
        kind = "exhausted" if isinstance(error, Exhausted) else "user"
        _write_error(out, secrets, {"kind": kind, "message": error.what, "hint": error.hint})
        return USER_FAULT
    except (Interrupted, KeyboardInterrupt):
        print("stopped on request; what was stored is continued by the next attempt")
        return STOPPED
    except BaseException as error:
        if stop.is_set():
            return STOPPED
        trace = traceback.format_exc()
        message = f"{type(error).__name__}: {error}"
        _write_error(out, secrets, {"kind": "internal", "message": message, "hint": "", "traceback": trace})
        print(trace, file=sys.stderr)
        return INTERNAL_FAULT
    if keep_result:
        write_text(out / "result.json", result.model_dump_json(indent=1))
    return OK


def _write_error(out: Path, secrets: Secrets, error: Mapping[str, Json]) -> None:
    print(f"{error['message']}\n{error['hint']}", file=sys.stderr)
    write_text(out / "error.json", json.dumps(secrets.hide(error), ensure_ascii=False, indent=1))
