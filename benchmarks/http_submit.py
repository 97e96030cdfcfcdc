"""Tasks enqueued over HTTP, against stock GraphQL on the same machine: `python benchmarks/http_submit.py [--postgres]`.

Four client processes send tasks of one stage to the web server of `mloc up`, one a request and `--bulk` a request, for
`--seconds` each, after stock. `tasks/s answered`: until the answer that says that the task is on the disk and has its
id. `runs/s queued`: what of it became runs in Dagster's queue, meanwhile and in the 15 seconds after.
Stock: `launchRun` of a job that is loaded already, through Dagster's own web server with the queued run coordinator,
its own storage and no daemon.
Nothing runs meanwhile on either side. `--postgres` puts both on a PostgreSQL that is started for it (initdb and pg_ctl
on the PATH; as root it runs as the user `postgres`).
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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
CLIENTS = 4
_DRAIN_SECONDS = 15.0
_TASK = "apiVersion: mloc/v1\nmetadata: {{name: bench-{name}, owner: {owner}}}\nspec: {{taskType: echo, echo: 1}}\n"
_WORKSPACE = "load_from:\n  - python_module: {module_name: mloc_dagster.definitions, location_name: mloc}\n"
_WAIT = "without_daemon: wait"
_STOCK = """\
run_launcher: {module: dagster._core.launcher, class: DefaultRunLauncher}
run_coordinator: {module: dagster._core.run_coordinator, class: QueuedRunCoordinator}
telemetry: {enabled: false}
nux: {enabled: false}
code_servers: {local_startup_timeout: 600}
"""
_LAUNCH = """mutation($job: String!) { launchRun(executionParams: {selector: {repositoryLocationName: "mloc",
repositoryName: "mloc", jobName: $job}, runConfigData: {}}) { __typename } }"""


@dataclass(frozen=True)
class Server:
    """A web server that runs."""

    port: int
    headers: dict[str, str]
    home: Path


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement (default 10)")
    parser.add_argument("--bulk", type=int, default=50, help="tasks of one bulk request (default 50)")
    parser.add_argument("--postgres", action="store_true", help="measure on PostgreSQL")
    given = parser.parse_args()
    sys.path.insert(0, str(_ROOT))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are ended
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mloc-http-", ignore_cleanup_errors=True)))
        storage = postgres(stack) if given.postgres else {"ours": "", "stock": ""}
        _measure(folder, storage, given.seconds, given.bulk)


def _measure(folder: Path, storage: dict[str, str], seconds: float, bulk: int) -> None:
    with _stock(folder / "stock", storage["stock"]) as server:
        stock = _rate(server, _graphql, seconds, 1)
    print(f"stock GraphQL launchRun: {stock}", flush=True)
    with ours(folder / "ours", storage["ours"]) as server:
        for what, send, count in (("one a request", _single, 1), (f"{bulk} a request", _bulk, bulk)):
            before, begun = accepted(server), time.perf_counter()
            found = _rate(server, send, seconds, count)
            while (left := accepted(server)) and time.perf_counter() - begun < seconds + _DRAIN_SECONDS:
                time.sleep(0.2)
            queued = (before + found.tasks - left) / (time.perf_counter() - begun)
            print(
                f"REST, {what}: {found}, {found.per_second / stock.per_second:.1f} times stock; "
                f"runs/s queued {queued:.1f}, {queued / stock.per_second:.1f} times stock",
                flush=True,
            )


@dataclass(frozen=True)
class Rate:
    """What clients got together; times in seconds."""

    tasks: int
    seconds: float
    answers: tuple[float, ...]

    @property
    def per_second(self) -> float:
        """Tasks a second."""
        return self.tasks / self.seconds

    def __str__(self) -> str:
        slow = statistics.quantiles(self.answers, n=20)[18] if len(self.answers) > 1 else self.answers[0]
        return f"{self.per_second:.1f} tasks/s answered (p95 {slow * 1000:.0f} ms a request)"


Send = Callable[[http.client.HTTPConnection, dict[str, str], str, int], None]


def _rate(server: Server, send: Send, seconds: float, count: int) -> Rate:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    clients = [
        context.Process(target=_client, args=(server, send, seconds, count, number, answers))
        for number in range(CLIENTS)
    ]
    begun = time.perf_counter()
    for client in clients:
        client.start()
    found = [answers.get(timeout=seconds + 120) for _ in clients]
    took = time.perf_counter() - begun
    for client in clients:
        client.join()
    faults = [text for text in found if isinstance(text, str)]
    if faults:
        raise SystemExit(f"a client failed: {faults[0]}")
    times = tuple(one for each in found for one in each)
    return Rate(len(times) * count, took, times)


def _client(server: Server, send: Send, seconds: float, count: int, number: int, answers) -> None:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        times, until, round_ = [], time.perf_counter() + seconds, 0
        while time.perf_counter() < until:
            begun = time.perf_counter()
            send(connection, server.headers, f"{count}-{number}-{round_}", count)
            times.append(time.perf_counter() - begun)
            round_ += 1
        answers.put(times)
    except Exception as error:
        answers.put(f"{type(error).__name__}: {error}")


def _single(connection: http.client.HTTPConnection, headers: dict[str, str], name: str, _count: int) -> None:
    headers = {**headers, "Content-Type": "text/yaml"}
    ask(connection, "POST", "/api/v1/tasks", headers, _TASK.format(name=name, owner=f"o{name[2]}"), 201)


def _bulk(connection: http.client.HTTPConnection, headers: dict[str, str], name: str, count: int) -> None:
    body = "---\n".join(_TASK.format(name=f"{name}-{number}", owner="bulk") for number in range(count))
    headers = {**headers, "Content-Type": "text/yaml"}
    told = ask(connection, "POST", "/api/v1/tasks/bulk", headers, body, 201)
    assert told["accepted"] == count, told


def _graphql(connection: http.client.HTTPConnection, headers: dict[str, str], _name: str, _count: int) -> None:
    headers = {**headers, "Content-Type": "application/json"}
    body = json.dumps({"query": _LAUNCH, "variables": {"job": "bench"}})
    told = ask(connection, "POST", "/graphql", headers, body, 200)
    assert told["data"]["launchRun"]["__typename"] == "LaunchRunSuccess", told


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, headers: dict[str, str], body: str | None, code: int
):
    connection.request(method, path, body=body, headers=headers)
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != code:
        raise AssertionError(f"{answer.status}: {text[:500]!r}")
    return json.loads(text)


def accepted(server: Server) -> int:
    """How many tasks are no runs yet."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    count, cursor = 0, ""
    while cursor is not None:
        path = f"/api/v1/tasks?status=ACCEPTED&page_size=500{cursor}"
        told = ask(connection, "GET", path, server.headers, None, 200)
        count += len(told["tasks"])
        cursor = f"&cursor={told['cursor']}" if told["cursor"] else None
    return count


@contextmanager
def ours(home: Path, storage: str) -> Iterator[Server]:
    from mloc_dagster.definitions.instance import DAGSTER_YAML

    before, _, after = DAGSTER_YAML.replace("without_daemon: launch", _WAIT).partition("storage:\n")
    rest = after.partition("\n\n")[2] if storage else after
    with _serving(home, before + (f"{storage}\n" if storage else "storage:\n") + rest, "mloc_dagster.service") as port:
        token = (home / "token").read_text().strip()
        yield Server(port, {"Authorization": f"Bearer {token}"}, home)


@contextmanager
def _stock(home: Path, storage: str) -> Iterator[Server]:
    with _serving(home, _STOCK + storage, "dagster_webserver") as port:
        yield Server(port, {}, home)


@contextmanager
def _serving(home: Path, settings: str, module: str) -> Iterator[int]:
    specs = home / "task_specs"
    specs.mkdir(parents=True)
    (specs / "bench.yaml").write_text(_TASK.format(name="stock", owner="alice"), "utf-8")
    (home / "dagster").mkdir()
    (home / "dagster" / "dagster.yaml").write_text(settings, "utf-8")
    (home / "workspace.yaml").write_text(_WORKSPACE, "utf-8")
    port = _free_port()
    environment = {**os.environ, "MLOC_HOME": str(home), "DAGSTER_HOME": str(home / "dagster")}
    environment |= {"PYTHONPATH": str(_ROOT), "MLOC_TASK_SPECS": str(specs)}
    command = [
        sys.executable,
        "-m",
        module,
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
        "-w",
        str(home / "workspace.yaml"),
    ]
    with (home / "web.log").open("w") as log:
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log)
    try:
        _wait(process, port, home / "web.log", "/readyz" if module == "mloc_dagster.service" else "/server_info")
        yield port
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path, path: str) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        try:
            ask(http.client.HTTPConnection("127.0.0.1", port, timeout=5), "GET", path, {}, None, 200)
            return
        except (OSError, AssertionError, http.client.HTTPException):
            time.sleep(0.2)
    raise SystemExit(f"the web server did not answer:\n{log.read_text()[-3000:]}")


def postgres(stack: ExitStack) -> dict[str, str]:
    from tests.postgres import postgres_server

    server = stack.enter_context(postgres_server())
    ours, stock = (f"    postgres_url: {server.database(name)}\n" for name in ("ours", "stock"))
    kept = "storage:\n  custom:\n    module: mloc_dagster.store.postgres\n    class: PostgresStorage\n    config:\n  "
    return {"ours": kept + ours, "stock": f"storage:\n  postgres:\n{stock}"}


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
