"""What a process that was forked from the pool does to be the process that the submitter would have started."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from contextlib import suppress

from mloc_dagster.placement.launcher.protocol import Request
from mloc_dagster.store.home import Home


def become_worker(request: Request, home: Home) -> None:
    """Lead a session, write to the run's own log, and take the submitter's environment, folder and umask."""
    if os.getsid(0) != os.getpid():
        os.setsid()
    os.umask(request.umask)
    _write_to_log(home, request.run_id)
    os.environ.clear()
    os.environ.update(request.environment)
    time.tzset()
    with suppress(OSError):  # a folder that is gone: stay in the home
        os.chdir(request.folder)
    sys.path[0] = os.getcwd()  # as `python -m` has it
    random.seed()


def is_alone() -> bool:
    """Whether this process has no thread but the caller's, and no child."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return threading.active_count() == 1
    return False


def _write_to_log(home: Home, run_id: str) -> None:
    home.logs.mkdir(parents=True, exist_ok=True)
    log = os.open(home.logs / f"{run_id}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
