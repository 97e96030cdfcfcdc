"""The containers of the chart as processes: its commands with its settings, its probes, and a task through both."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from mloc_dagster.service.tokens import Tokens
from mloc_dagster.store.home import Home
from tests.cli.conftest import processes_of
from tests.deploy.test_helm import pod, rendered, settings
from tests.waiting import wait_for

TASK = "apiVersion: mloc/v1\nmetadata: {name: one, owner: ann}\nspec: {taskType: echo, echo: {text: hello}}\n"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A home with the chart's settings, as the init container makes it."""
    found = Home(tmp_path / "home")
    found.dagster.mkdir(parents=True)
    shutil.copy(settings(rendered("default"), tmp_path) / "dagster.yaml", found.dagster)
    yield found
    for process in processes_of(tmp_path):
        if process.pid != os.getpid():
            process.kill()


def container(name: str) -> dict[str, Any]:
    return next(one for one in pod(rendered("default"))["containers"] if one["name"] == name)


def here(words: list[str], folder: Path) -> list[str]:
    """A command of a container, on this machine: this Python's programs, a free port on loopback."""
    own = {"/etc/mloc/workspace.yaml": str(folder / "workspace.yaml"), "0.0.0.0": "127.0.0.1", "3000": "0"}
    bin_ = Path(sys.executable).parent
    return [str(bin_ / words[0]), *(own.get(word, word) for word in words[1:])]


def environment(name: str, home: Home) -> dict[str, str]:
    """The variables of a container, in this home."""
    told = {one["name"]: one["value"].replace("/var/lib/mloc", str(home.root)) for one in container(name)["env"]}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLOC_", "DAGSTER_"))}
    return {**kept, **told, "OMP_NUM_THREADS": "1", "MLOC_POOL_IDLE": "5"}


@contextmanager
def started(name: str, home: Home) -> Iterator[Path]:
    """Run a container's command; gives its log. It ends on SIGTERM, as the kubelet sends it."""
    log = home.root.parent / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            here(container(name)["command"], home.root.parent), cwd=home.root, env=environment(name, home), stdout=out,
            stderr=out,
        )  # fmt: skip
    try:
        yield log
        assert process.poll() is None, log.read_text()
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        process.kill()
        process.wait()


def lives(home: Home, tolerance: str = "") -> bool:
    """What the daemon's probe says."""
    told = environment("daemon", home)
    if tolerance:
        told["DAGSTER_DAEMON_HEARTBEAT_TOLERANCE"] = tolerance
    command = here(container("daemon")["livenessProbe"]["exec"]["command"], home.root.parent)
    return subprocess.run(command, env=told, capture_output=True, timeout=100).returncode == 0


@pytest.mark.slow
def test_a_task_goes_through_the_containers_of_the_chart(home: Home) -> None:
    with started("web", home) as log:
        wait_for(lambda: "listening on" in log.read_text(), "the service", 120)
        address = log.read_text().split("listening on ")[1].split()[0]
        assert not lives(home), "there is no daemon yet"
        with started("daemon", home):
            probes = container("web")
            for probe in (probes["livenessProbe"], probes["readinessProbe"]):
                path = probe["httpGet"]["path"]
                wait_for(lambda path=path: requests.get(address + path, timeout=20).ok, path)
            headers = {"Authorization": f"Bearer {Tokens(home).create('me', 'submit')}"}
            answer = requests.post(
                f"{address}/api/v1/tasks", data=TASK, timeout=60, headers=headers | {"Content-Type": "text/yaml"}
            )
            assert answer.status_code == 201, answer.text
            task = f"{address}/api/v1/tasks/{answer.json()['id']}"
            wait_for(
                lambda: requests.get(task, headers=headers, timeout=60).json()["status"] == "SUCCESS", "the task", 120
            )
            wait_for(lambda: lives(home), "the daemon's heartbeats", 120)
        time.sleep(2)
        assert not lives(home, tolerance="-29"), "one second after the 30 that Dagster adds, its silence is noticed"
