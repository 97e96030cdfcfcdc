"""A function in a child: this process, which forks a child for each shard, stays small and starts no threads.

A fork takes as long as the process is large, and the libraries that read data sets or embed texts make it many times
as large; after a fork their threads are not there.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

from executors.base import ExecutorError, Interrupted
from executors.context import TaskContext
from executors.parent import end_with_parent

Told = TypeVar("Told")
_POLL_SECONDS = 0.2


def in_child(work: Callable[[TaskContext], Told], ctx: TaskContext) -> Told:
    """Return what `work(ctx)` returns, which must be a value that can be pickled.

    Raises ExecutorError when it does, Interrupted after a stop, RuntimeError when it failed otherwise or was killed.
    """
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=_work, args=(work, ctx, sender), name=work.__name__)
    child.start()
    sender.close()
    try:
        while not receiver.poll(_POLL_SECONDS):
            if ctx.stop.is_set():
                raise Interrupted
        fault, told = receiver.recv()
        child.join()
    except EOFError:
        child.join()
        raise RuntimeError(f"{work.__name__} ended with exit code {child.exitcode}, see the log") from None
    finally:
        child.kill()
        child.join()
        receiver.close()
    if fault:
        raise ExecutorError(*told)
    return told


def _work(work: Callable[[TaskContext], object], ctx: TaskContext, sender: Connection) -> None:
    end_with_parent(signal.SIGKILL)
    try:
        sender.send((False, work(ctx)))
    except ExecutorError as error:
        sender.send((True, (error.what, error.hint)))
    except Interrupted:
        return
