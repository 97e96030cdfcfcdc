"""`mloc serve` and `mloc daemon` as units of their own: a task's trace from submission to steps; logs as JSON."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests.telemetry.collector import collecting
from tests.waiting import wait_for

pytestmark = pytest.mark.slow
PARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"
SECRET = "correct-horse-battery"
TASK = """\
apiVersion: mloc/v1
metadata: {name: traced, owner: ann}
spec:
  taskType: echo
  stages:
    - {name: one, spec: {echo: {span: "${TRACEPARENT}"}}}
    - {name: two, spec: {echo: {text: after}}}
"""


def mloc(folder: Path, log: Path, *arguments: str, **more: str) -> subprocess.Popen[bytes]:
    """Start the command; what it writes goes into a file."""
    environment = {**os.environ, "MLOC_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", **more}
    environment.pop("DAGSTER_HOME", None)
    command = [sys.executable, "-c", "from mloc_dagster.cli import main; main()", *arguments]
    with log.open("wb") as out:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=out)


def records(log: Path) -> list[dict]:
    """The lines of a log, each an object."""
    return [json.loads(line) for line in log.read_text("utf-8").splitlines() if line.strip()]


def test_a_task_is_traced_and_logged_from_its_submission_to_its_steps(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    web, daemon, home = tmp_path / "web.log", tmp_path / "daemon.log", tmp_path / "home"
    with collecting() as collector:
        more = {"MLOC_TRACES": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.address, "SOME_PASSWORD": SECRET}
        processes = [
            mloc(tmp_path, web, "serve", "--port", str(port), "--log-format", "json", **more),
            mloc(tmp_path, daemon, "daemon", "--log-format", "json", **more),
        ]
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(lambda: _answers(address), "the service", 150)
            number = _submitted(address, home)
            wait_for(lambda: _status(address, home, number) == "SUCCESS", "the task", 150)
            wait_for(lambda: bool(collector.named("submit") and collector.named("run")), "the spans", 30)
        finally:
            for process in processes:
                process.send_signal(signal.SIGINT)
            for process in processes:
                process.wait(60)
        _check_spans(collector.named, number)
    _check_logs([web, daemon, home / "logs" / "pool.log", home / "logs" / f"{number}.log"], number)


def _check_spans(named: Callable, number: str) -> None:
    (submit,), (run,), (queue,), (place,) = (named(name) for name in ("submit", "run", "queue", "place"))
    steps = {span.attributes["mloc.step"]: span for span in named("step")}
    assert {span.trace for span in (submit, run, queue, place, *steps.values())} == {"ab" * 16}
    assert submit.parent == "cd" * 8 and submit.service == "mloc-web"
    assert queue.parent == place.parent == run.parent == submit.id
    assert set(steps) == {"traced/one", "traced/two"} and {span.parent for span in steps.values()} == {run.id}
    assert {span.attributes["mloc.run_id"] for span in (run, queue, place, *steps.values())} == {number}
    assert submit.begun <= queue.begun <= queue.ended <= place.ended <= run.ended
    assert steps["traced/one"].ended <= steps["traced/two"].begun


def _check_logs(paths: list[Path], number: str) -> None:
    found = {path.name: records(path) for path in paths}
    assert all("time" in one and "message" in one for lines in found.values() for one in lines)
    assert any(one.get("run_id") == number and one["service"] == "feeder" for one in found["web.log"])
    assert any(one.get("run_id") == number and "launched" in one["message"] for one in found["daemon.log"])
    mine = found[f"{number}.log"]
    assert (
        {one["run_id"] for one in mine if "run_id" in one}
        == {number}
        == {one["task_id"] for one in mine if "task_id" in one}
    )
    assert any(one.get("step") == "traced__one" and "STEP_START" in one["message"] for one in mine)
    assert SECRET not in "".join(path.read_text() for path in paths)


def test_what_cannot_be_is_said_at_once(tmp_path: Path) -> None:
    for arguments, more, said in (
        (["serve", "--log-format", "xml"], {}, "'xml'; write text or json"),
        (["up"], {"MLOC_TRACES": "zipkin"}, "'zipkin'; write otlp"),
        (["daemon"], {"MLOC_LOG_FORMAT": "xml"}, "'xml'; write text or json"),
    ):
        process = mloc(tmp_path, tmp_path / "log", *arguments, **more)
        assert process.wait(120) == 2
        assert said in (tmp_path / "log").read_text() and "Traceback" not in (tmp_path / "log").read_text()


def _opened(home: Path) -> dict[str, str]:
    return {"Authorization": f"Bearer {(home / 'token').read_text().strip()}"}


def _submitted(address: str, home: Path) -> str:
    headers = {**_opened(home), "Content-Type": "text/yaml", "traceparent": PARENT}
    answer = requests.post(f"{address}/api/v1/tasks", data=TASK, headers=headers, timeout=60)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def _status(address: str, home: Path, number: str) -> str:
    time.sleep(0.3)
    told = requests.get(f"{address}/api/v1/tasks/{number}", headers=_opened(home), timeout=60).json()
    assert told["status"] not in ("FAILURE", "REFUSED"), told
    return told["status"]


def _answers(address: str) -> bool:
    try:
        return requests.get(f"{address}/readyz", timeout=5).ok
    except requests.RequestException:
        return False
