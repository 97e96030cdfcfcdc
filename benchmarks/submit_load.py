"""Submissions at a steady rate while tasks run: `python benchmarks/submit_load.py [--postgres] [--seconds 60]`.

Four client processes send `--rate` tasks a second together (50), one a request, to the web server of `mloc up`, with
the daemon beside it starting what comes. Each client keeps its own timetable and never waits for the others; a request
that comes late because the one before took long counts from when it was due. Prints requests, errors, median, p95 and
p99 in milliseconds, CPU milliseconds a request of web server and feeders (user and system), and how many tasks ended
meanwhile. Exit code 1 when a request failed, when p95 is above `--most-ms` (200), or when no task ended meanwhile.
`--postgres` puts it on a PostgreSQL that is started for it (initdb and pg_ctl on the PATH).
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "benchmarks")]

from http_submit import CLIENTS, Server, ask, ours, postgres  # noqa: E402

_TASK = "apiVersion: mloc/v1\nmetadata: {{name: load-{name}, owner: o{owner}}}\nspec: {{taskType: echo, echo: 1}}\n"


@dataclass(frozen=True)
class Sent:
    """What one client saw: seconds from when each request was due, and faults."""

    answers: tuple[float, ...]
    faults: tuple[str, ...]


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=50, help="tasks a second of all clients together (default 50)")
    parser.add_argument("--most-ms", type=float, default=200, help="what p95 may be (default 200)")
    parser.add_argument("--postgres", action="store_true", help="measure on PostgreSQL")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are ended
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mloc-load-", ignore_cleanup_errors=True)))
        storage = postgres(stack)["ours"] if given.postgres else ""
        server = stack.enter_context(ours(folder / "home", storage))
        stack.enter_context(_daemon(server))
        return _measure(server, given.rate, given.seconds, given.most_ms)


def _measure(server: Server, rate: float, seconds: float, most_ms: float) -> int:
    ask(_connection(server), "POST", "/api/v1/tasks", _headers(server), _TASK.format(name="first", owner=0), 201)
    _wait_for_one(server)
    web = _web(server)
    ended, before, begun = _ended(server), _cpu(web), time.perf_counter()
    sent = _clients(server, rate / CLIENTS, seconds)
    took, ended = time.perf_counter() - begun, _ended(server) - ended
    cpu = [now - then for now, then in zip(_cpu(web), before, strict=True)]
    answers = [one for each in sent for one in each.answers]
    faults = [one for each in sent for one in each.faults]
    for fault in faults[:5]:
        print(f"fault: {fault}", file=sys.stderr)
    cuts = statistics.quantiles(answers, n=100)
    told = {
        "requests": len(answers), "errors": len(faults), "requests_per_second": round(len(answers) / took, 1),
        "median_ms": round(cuts[49] * 1000, 1), "p95_ms": round(cuts[94] * 1000, 1),
        "p99_ms": round(cuts[98] * 1000, 1), "web_cpu_ms_a_request": round(cpu[0] / len(answers) * 1000, 2),
        "feeders_cpu_ms_a_request": round(cpu[1] / len(answers) * 1000, 2), "tasks_ended_meanwhile": ended,
    }  # fmt: skip
    print(json.dumps(told))
    return 0 if not faults and told["p95_ms"] <= most_ms and ended > 0 else 1


def _clients(server: Server, rate: float, seconds: float) -> list[Sent]:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    clients = [context.Process(target=_client, args=(server, rate, seconds, one, answers)) for one in range(CLIENTS)]
    for client in clients:
        client.start()
    found = [answers.get(timeout=seconds * 4 + 120) for _ in clients]
    for client in clients:
        client.join()
    return found


def _client(server: Server, rate: float, seconds: float, number: int, answers) -> None:
    connection, times, faults = _connection(server), [], []
    begun = time.perf_counter() + number / rate / CLIENTS
    for turn in range(int(rate * seconds)):
        due = begun + turn / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        try:
            task = _TASK.format(name=f"{number}-{turn}", owner=number)
            ask(connection, "POST", "/api/v1/tasks", _headers(server), task, 201)
        except Exception as error:
            faults.append(f"{type(error).__name__}: {error}")
            connection = _connection(server)
        times.append(time.perf_counter() - due)
    answers.put(Sent(tuple(times), tuple(faults)))


@contextmanager
def _daemon(server: Server) -> Iterator[None]:
    home = server.home
    environment = {
        **os.environ,
        "MLOC_HOME": str(home),
        "DAGSTER_HOME": str(home / "dagster"),
        "PYTHONPATH": str(_ROOT),
    }
    environment["MLOC_TASK_SPECS"] = str(home / "task_specs")
    command = [sys.executable, "-m", "mloc_dagster.definitions.daemon", "-w", str(home / "workspace.yaml")]
    with (home / "daemon.log").open("w") as log:
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        _end_pools(home)


def _end_pools(home: Path) -> None:
    from mloc_dagster.placement.launcher.client import stop
    from mloc_dagster.store.home import Home

    stop(Home(home))


def _wait_for_one(server: Server) -> None:
    deadline = time.monotonic() + 300
    while not _ended(server):
        if time.monotonic() > deadline:
            raise SystemExit(f"no task ran:\n{(server.home / 'daemon.log').read_text()[-3000:]}")
        time.sleep(0.5)


def _ended(server: Server) -> int:
    connection = _connection(server)
    connection.request("GET", "/metrics", headers=server.headers)
    text = connection.getresponse().read().decode()
    lines = [line for line in text.splitlines() if line.startswith('mloc_tasks_ended_total{status="succeeded"}')]
    return int(float(lines[0].rpartition(" ")[2])) if lines else 0


def _web(server: Server) -> list[psutil.Process]:
    """The web server and its feeders."""
    for process in psutil.Process().children():
        if "mloc_dagster.service" in process.cmdline() and str(server.port) in process.cmdline():
            return [process, *(one for one in process.children() if "mloc_dagster.service.feeder" in one.cmdline())]
    raise SystemExit("the web server is not there")


def _cpu(processes: list[psutil.Process]) -> tuple[float, float]:
    """CPU seconds of the web server, and of its feeders together."""
    first, *others = (times.user + times.system for times in (process.cpu_times() for process in processes))
    return first, sum(others)


def _connection(server: Server) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)


def _headers(server: Server) -> dict[str, str]:
    return {**server.headers, "Content-Type": "text/yaml"}


if __name__ == "__main__":
    sys.exit(main())
