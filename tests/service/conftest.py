"""One real service for all tests of this folder: on loopback, with tokens of each scope; runs wait for a daemon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from mloc_dagster.definitions.instance import DAGSTER_YAML
from mloc_dagster.service.tokens import Tokens
from mloc_dagster.store.home import Home
from tests.waiting import wait_for

ROOT = Path(__file__).absolute().parents[2]
ECHO = (
    "apiVersion: mloc/v1\nmetadata: {{name: {name}, owner: {owner}}}\nspec: {{taskType: echo, echo: {{text: one}}}}\n"
)


@dataclass(frozen=True)
class Service:
    """Where it is, and what opens it."""

    address: str
    home: Home
    process: psutil.Process
    tokens: dict[str, str] = field(default_factory=dict)

    def __call__(self, method: str, path: str, scope: str | None = "admin", **arguments: Any) -> requests.Response:
        """Send a request with the token of a scope."""
        headers = {
            **({"Authorization": f"Bearer {self.tokens[scope]}"} if scope else {}),
            **arguments.pop("headers", {}),
        }
        return requests.request(
            method, self.address + path, headers=headers, timeout=60, allow_redirects=False, **arguments
        )

    def submit(self, name: str = "task", owner: str = "alice", path: str = "/api/v1/tasks") -> str:
        """Submit an echo task and return its id."""
        answer = self("POST", path, data=ECHO.format(name=name, owner=owner), headers={"Content-Type": "text/yaml"})
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def status(self, number: str) -> str:
        """Return a task's status."""
        return self("GET", f"/api/v1/tasks/{number}").json()["status"]


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The web server with its feeders, in a process of its own."""
    home = Home(tmp_path_factory.mktemp("service") / "home")
    home.dagster.mkdir(parents=True)
    settings = DAGSTER_YAML.replace("without_daemon: launch", "without_daemon: wait")
    (home.dagster / "dagster.yaml").write_text(settings, "utf-8")
    workspace = home.dagster / "workspace.yaml"
    workspace.write_text(
        "load_from:\n  - python_module: {module_name: mloc_dagster.definitions, location_name: mloc}\n"
    )
    command = ["-m", "mloc_dagster.service", "--port", "0", "-w", str(workspace)]
    log = home.root / "web.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=home.root, env=environment(home), stdout=out, stderr=out
        )
    try:
        address = _address(process, log)
        tokens = {scope: Tokens(home).create(scope, scope) for scope in ("read", "submit", "admin", "worker")}
        yield Service(address, home, psutil.Process(process.pid), tokens)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture
def daemon(service: Service) -> Iterator[None]:
    """The daemon, which starts what waits."""
    command = [sys.executable, "-m", "mloc_dagster.definitions.daemon"]
    with (service.home.root / "daemon.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=service.home.root, env=environment(service.home), stdout=log, stderr=log
        )
    yield
    process.send_signal(signal.SIGINT)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()


def environment(home: Home) -> dict[str, str]:
    """What processes of the service see."""
    named = {"MLOC_HOME": str(home.root), "DAGSTER_HOME": str(home.dagster), "PYTHONPATH": str(ROOT)}
    return {**os.environ, **named, "OMP_NUM_THREADS": "1", "MLOC_TASK_SPECS": str(home.root / "none")}


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        found = [line for line in log.read_text().splitlines() if line.startswith("listening on ")]
        if found:
            address = found[0].removeprefix("listening on ")
            wait_for(partial(_ready, address), "the service", 60)
            return address
        time.sleep(0.1)
    raise AssertionError(f"the service did not start:\n{log.read_text()}")


def _ready(address: str) -> bool:
    try:
        return requests.get(f"{address}/readyz", timeout=5).ok
    except requests.ConnectionError:
        return False
