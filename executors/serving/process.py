"""One engine: `python -m executors.serving.process FOLDER`, started by `executors.serving.engines`.

It belongs to no run. It ends itself when it has had no user for its idle time, when its folder disappears, when a newer
engine has taken its place, when memory is short and no other engine has been idle longer, and on SIGTERM; always as a
whole process group.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path

import psutil

from executors.base import ExecutorError
from executors.serving.registry import EngineFolder, EngineSpec, EngineState
from executors.serving.watch import watch
from mloc_dagster.files.atomic import write_text


def main(arguments: list[str]) -> None:
    """Load, serve, end."""
    if os.getpid() != os.getpgrp():
        os.setsid()
    folder = EngineFolder(Path(arguments[0]).parent, Path(arguments[0]).name)
    signal.signal(signal.SIGTERM, lambda number, frame: _end())
    try:
        spec = folder.spec()
        state = EngineState(pid=os.getpid(), born=psutil.Process().create_time(), host=socket.gethostname())
        folder.write_state(state)
        threading.Thread(target=_watched, args=(folder, spec, state.pid), name="watch", daemon=True).start()
        if spec.kind == "vllm":
            from executors.serving.vllm_server import serve
        else:
            from executors.serving.transformers_server import serve
        serve(folder, spec, state)
    except BaseException as error:
        _tell(folder, error)
    finally:
        _end()


def _watched(folder: EngineFolder, spec: EngineSpec, pid: int) -> None:
    try:
        watch(folder, spec, pid)
    finally:
        _end()


def _tell(folder: EngineFolder, error: BaseException) -> None:
    traceback.print_exception(error)
    user = isinstance(error, ExecutorError)
    what, hint = (error.what, error.hint) if isinstance(error, ExecutorError) else (f"{error!r}", "")
    if folder.path.is_dir():
        write_text(folder.path / "error.json", json.dumps({"what": what, "hint": hint, "user": str(user)}))


def _end() -> None:
    """Kill the whole group, this process included."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
