"""What a process that was forked from the warm one does to be `python -m executors.host JOB`."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass

from executors import host
from executors.cgroup import enter
from executors.parent import end_with
from executors.warm import title
from executors.warm.libraries import Loaded, adopt
from executors.warm.messages import Answer, Ask, send

_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Handles:
    """What came with an ask: the process that asked, the stage's log, and what else is to stay open."""

    asker: int
    log: int
    kept: tuple[int, ...]


def run_stage(connection: socket.socket, ask: Ask, handles: Handles, loaded: Loaded) -> int:
    """Be the stage, once whoever asked for it has said that it still wants it; returns the exit code."""
    _become(ask, handles)
    with_process = os.pidfd_open(os.getpid())
    send(connection, Answer(state="started", pid=os.getpid()), (with_process,))
    os.close(with_process)
    connection.settimeout(_PATIENCE_SECONDS)
    if not connection.recv(1):
        return os.EX_TEMPFAIL
    connection.settimeout(None)
    code = _code_of(ask.job, handles.asker, loaded)
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            stream.flush()
    with suppress(OSError):  # nobody is left who asked
        send(connection, Answer(state="ended", code=code))
    return code


def _become(ask: Ask, handles: Handles) -> None:
    os.setsid()
    os.umask(ask.umask)
    for door in ask.doors:
        enter(door)
    for stream in (1, 2):
        os.dup2(handles.log, stream)
    os.close(handles.log)
    for handle in handles.kept:
        os.set_inheritable(handle, True)
    os.environ.clear()
    os.environ.update(ask.environment)
    time.tzset()
    os.chdir(ask.folder)
    command = [sys.executable, "-u", "-m", "executors.host", ask.job]
    sys.path[0], sys.argv, sys.orig_argv = os.getcwd(), [host.__file__, ask.job], command
    sys.modules["__main__"] = host
    title.show(command)


def _code_of(job: str, asker: int, loaded: Loaded) -> int:
    end_with(asker, signal.SIGTERM)
    try:
        return host.run([job], prepared=lambda: adopt(loaded))
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
