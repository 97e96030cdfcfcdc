"""The same job through Dagster's own doors: its command line, its web server, its daemon."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import DagsterEvent, DagsterEventType, DagsterInstance, DagsterRunStatus

from mloc_dagster.definitions.instance import DAGSTER_YAML
from mloc_dagster.definitions.launcher import WORKER
from mloc_dagster.definitions.submit import create_run
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_file
from mloc_dagster.store.home import Home
from tests.definitions.conftest import ROOT, get, status, write
from tests.waiting import wait_for

Query = Callable[..., dict[str, Any]]
_LAUNCH = """mutation($job: String!) { launchRun(executionParams: {
    selector: {repositoryLocationName: "mloc", repositoryName: "mloc", jobName: $job}, runConfigData: {}
  }) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
_NODES = """{ assetNodes { assetKey { path } dependencyKeys { path } groupName kinds jobNames
    owners { ... on TeamAssetOwner { team } } tags { key value } description
    assetChecksOrError { ... on AssetChecks { checks { name } } }
    metadataEntries { label ... on MarkdownMetadataEntry { mdStr } } } }"""


@pytest.fixture
def started(home: Home) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start `python -m ...` and end it, with all of its group, after the test."""
    children: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        log = (home.root / f"{arguments[0]}.log").open("wb")
        command = [sys.executable, "-m", *arguments, "-w", str(ROOT / "workspace.yaml")]
        children.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=home.root.parent, start_new_session=True))
        return children[-1]

    yield start
    for child in children:
        child.send_signal(signal.SIGINT)
    for child in children:
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


@pytest.fixture
def query(instance: DagsterInstance, home: Home, workspace: Path, started: Callable) -> Query:
    """Ask a real web server that has loaded `workspace.yaml` with one good and one bad task file."""
    write(workspace / "group" / "task-one.yaml")
    (workspace / "bad.yaml").write_text("]")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = started("dagster_webserver", "-h", "127.0.0.1", "-p", str(port))

    def ask(text: str, **variables: object) -> dict[str, Any]:
        body = json.dumps({"query": text, "variables": variables}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            found = json.load(answer)
        assert "errors" not in found, found
        return found["data"]

    def up() -> bool:
        assert server.poll() is None, (home.root / "dagster_webserver.log").read_text()
        try:
            return bool(ask("{ version }"))
        except OSError:
            return False

    wait_for(up, "the web server", 120)
    return ask


def test_dagster_job_execute(instance: DagsterInstance, home: Home, workspace: Path) -> None:
    write(workspace / "task.yaml")
    command = [sys.executable, "-m", "dagster", "job", "execute", "-m", "mloc_dagster.definitions", "-j", "task"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=home.root.parent)
    assert done.returncode == 0, done.stderr
    (run,) = instance.get_runs()
    assert run.status is DagsterRunStatus.SUCCESS
    assert (home.results / run.run_id / "second" / "responses.json").is_file()


def test_dagster_job_execute_of_a_bad_file_names_the_fault(
    instance: DagsterInstance, home: Home, workspace: Path
) -> None:
    (workspace / "bad.yaml").write_text("apiVersion: mloc/v1\nspec: {taskType: ecko}\n")
    command = [sys.executable, "-m", "dagster", "job", "execute", "-m", "mloc_dagster.definitions", "-j", "bad"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=home.root.parent)
    assert done.returncode != 0 and "bad.yaml:2:" in done.stderr and "ecko" in done.stderr


def test_the_web_server_launches_runs_and_shows_lineage(query: Query, instance: DagsterInstance, home: Home) -> None:
    nodes = {"/".join(node["assetKey"]["path"]): node for node in query(_NODES)["assetNodes"]}
    assert set(nodes) == {"task-one/first", "task-one/second"}
    second = nodes["task-one/second"]
    assert second["dependencyKeys"] == [{"path": ["task-one", "first"]}]
    assert second["jobNames"] == ["group__task_one"] and second["groupName"] == "demo"
    assert second["kinds"] == ["echo", "python"] and second["owners"] == [{"team": "alice"}]
    assert {tag["key"]: tag["value"] for tag in second["tags"]}.items() >= {
        "project": "demo",
        "task_type": "echo",
    }.items()
    assert second["assetChecksOrError"]["checks"] == [{"name": "artifacts_present"}]
    spec = next(entry["mdStr"] for entry in second["metadataEntries"] if entry["label"] == "spec")
    assert "text: two" in spec
    answer = query(_LAUNCH, job="group__task_one")["launchRun"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    run_id = answer["run"]["runId"]
    assert status(instance, run_id) is DagsterRunStatus.SUCCESS
    assert (home.results / run_id / "second" / "responses.json").is_file()


def test_the_daemon_takes_what_is_dropped_and_fails_runs_whose_worker_died(
    instance: DagsterInstance, home: Home, tmp_path: Path, started: Callable
) -> None:
    plan = compile_plan(load_file(write(tmp_path / "other.yaml")))
    dead = create_run(instance, plan, "other", fresh=False, tags={WORKER: "1:0@00000000"})
    alien = create_run(instance, plan, "other", fresh=False, tags=None)
    for run in (dead, alien):
        event = DagsterEvent(event_type_value=DagsterEventType.RUN_START.value, job_name=run.job_name)
        instance.report_dagster_event(event, run_id=run.run_id)
    write(home.inbox / "task.yaml")
    started("dagster._daemon", "run")
    wait_for(lambda: (home.inbox / "accepted" / "task.yaml").is_file(), "the inbox to be read", 120)
    assert status(instance, dead.run_id) is DagsterRunStatus.FAILURE
    (dropped,) = [run for run in instance.get_runs() if run.job_name.startswith("task__")]
    assert status(instance, dropped.run_id) is DagsterRunStatus.SUCCESS
    assert not get(instance, alien.run_id).is_finished
    assert len(instance.get_runs()) == 3


def test_the_shipped_instance_settings_are_those_of_a_new_home() -> None:
    assert yaml.safe_load((ROOT / "dagster.yaml").read_text()) == yaml.safe_load(DAGSTER_YAML)
