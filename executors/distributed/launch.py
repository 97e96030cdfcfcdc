"""Start the processes of one training on this machine, through torchrun, and wait for its result.

Replicas are torchruns that meet by an endpoint; on nodes that share no folder there is one torchrun each, which meet at
the first node (torchrun's static rendezvous). Only the first node has the result.
"""

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
from executors.distributed.nodes import Node
from executors.job import Job
from mloc_dagster.files.atomic import write_text

_POLL_SECONDS = 0.05
_MEET_SECONDS = 1800
"""So long a node waits for the others: their images may have to be pulled first."""


def launch(job: Job, layout: Layout, stop: threading.Event) -> Result:
    """Run the job in `layout.processes` processes and return what the first of them found.

    Raises Interrupted when `stop` was set; each process has stored its state by then. Raises ExecutorError for what a
    process found wrong with the user's input, and RuntimeError when one was killed or failed for another reason.
    """
    marks = {rank: ended(job.out, rank) for rank in layout.ranks}
    for mark in marks.values():
        mark.unlink(missing_ok=True)
    path = job.out / "ranks.json"
    write_text(path, job.model_copy(update={"fresh": False}).model_dump_json())
    meeting = _at_first_node(layout.node) if layout.node else _here(job, layout)
    agents = [_start(job, layout, replica, meeting, path) for replica in range(layout.replicas)]
    try:
        _wait(agents, stop)
    finally:
        _end(agents)
        path.unlink(missing_ok=True)
    killed = [rank for rank, mark in marks.items() if not mark.exists()]
    if layout.node and layout.node.rank > 0 and not any(agent.returncode for agent in agents):
        return Result(payload={})
    return _result(job, stop, [agent.returncode for agent in agents], killed)


def _here(job: Job, layout: Layout) -> dict[str, str]:
    """Options of torchruns that meet on this machine."""
    endpoint = f"127.0.0.1:{_free_port()}"
    return {
        "nnodes": str(layout.replicas), "rdzv-backend": "c10d", "rdzv-id": job.out.name, "rdzv-endpoint": endpoint,
        "local-addr": "127.0.0.1",
    }  # fmt: skip


def _at_first_node(node: Node) -> dict[str, str]:
    """Options of the torchrun of one node."""
    return {
        "nnodes": str(node.count), "node-rank": str(node.rank), "master-addr": node.first_host,
        "master-port": str(node.first_port), "rdzv-conf": f"timeout={_MEET_SECONDS}",
    }  # fmt: skip


def _start(
    job: Job, layout: Layout, replica: int, meeting: dict[str, str], path: Path
) -> subprocess.Popen[bytes]:  # fmt: skip
    options = {**meeting, "nproc-per-node": layout.per_node, "max-restarts": 0}
    command = [sys.executable, "-u", "-m", "executors.distributed.agent"]
    command += [f"--{key}={value}" for key, value in options.items()]
    one_network = layout.node is None or layout.node.on_loopback
    environment = {
        **({"GLOO_SOCKET_IFNAME": "lo"} if one_network else {}),
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // layout.processes)),
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
