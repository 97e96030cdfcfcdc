"""Start one training in several processes of this machine, through torchrun, and wait for its result."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from executors.base import ExecutorError, Interrupted, Result
from executors.distributed.layout import Layout, ended, visible
from executors.job import Job
from mloc_dagster.files.atomic import write_text

_POLL_SECONDS = 0.05


def launch(job: Job, layout: Layout, stop: threading.Event) -> Result:
    """Run the job in `layout.processes` processes and return what the first of them found.

    Raises Interrupted when `stop` was set; each process has stored its state by then. Raises ExecutorError for what a
    process found wrong with the user's input, and RuntimeError when one was killed or failed for another reason.
    """
    marks = [ended(job.out, rank) for rank in range(layout.processes)]
    for mark in marks:
        mark.unlink(missing_ok=True)
    path = job.out / "ranks.json"
    write_text(path, job.model_copy(update={"fresh": False}).model_dump_json())
    endpoint = f"127.0.0.1:{_free_port()}"
    agents = [_start(job, layout, replica, endpoint, path) for replica in range(layout.replicas)]
    try:
        _wait(agents, stop)
    finally:
        _end(agents)
        path.unlink(missing_ok=True)
    killed = [rank for rank, mark in enumerate(marks) if not mark.exists()]
    return _result(job, stop, [agent.returncode for agent in agents], killed)


def _start(job: Job, layout: Layout, replica: int, endpoint: str, path: Path) -> subprocess.Popen[bytes]:
    options = {
        "nnodes": layout.replicas, "nproc-per-node": layout.per_node, "rdzv-backend": "c10d", "rdzv-id": job.out.name,
        "rdzv-endpoint": endpoint, "local-addr": "127.0.0.1", "max-restarts": 0,
    }  # fmt: skip
    command = [sys.executable, "-u", "-m", "executors.distributed.agent"]
    command += [f"--{key}={value}" for key, value in options.items()]
    environment = {
        "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // layout.processes)),
        **os.environ, "CUDA_VISIBLE_DEVICES": visible(layout.devices_of(replica)),
    }  # fmt: skip
    # In a session of its own: a signal to this process's group would reach each process twice, through torchrun too.
    return subprocess.Popen(
        [*command, "-m", "executors.distributed.worker", str(path)], env=environment, start_new_session=True
    )


def _wait(agents: list[subprocess.Popen[bytes]], stop: threading.Event) -> None:
    """Return when all have ended; one that failed, or a request to stop, ends the others."""
    asked = False
    while any(agent.poll() is None for agent in agents):
        if not asked and (stop.is_set() or any(agent.poll() not in (None, 0) for agent in agents)):
            asked = True
            for agent in agents:
                agent.terminate()
        time.sleep(_POLL_SECONDS)


def _end(agents: list[subprocess.Popen[bytes]]) -> None:
    for agent in agents:
        with contextlib.suppress(ProcessLookupError):
            agent.kill()
        agent.wait()


def _result(job: Job, stop: threading.Event, codes: list[int], killed: list[int]) -> Result:
    found, fault = job.out / "result.json", job.out / "error.json"
    if found.exists() and not any(codes):
        return Result.model_validate_json(found.read_text("utf-8"))
    if stop.is_set():
        raise Interrupted
    error = json.loads(fault.read_text("utf-8")) if fault.exists() else {}
    if error.get("kind") == "user":
        raise ExecutorError(error["message"], error["hint"])
    told = "\n".join(str(error[key]) for key in ("message", "traceback") if error.get(key))
    if killed:
        names = ", ".join(map(str, killed))
        told = f"training process {names} was killed (out of memory, or from outside)\n{told}"
    raise RuntimeError(told or f"torchrun ended with exit codes {codes}; see {job.out / 'logs'}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
