"""Stages as Jobs, from a task file to its result."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRun

from mloc_dagster.placement.failures.cause import ATTEMPTS, CAUSE
from mloc_dagster.placement.failures.faults import faults_of
from mloc_dagster.store.home import Home
from tests.kubernetes_api import Cluster
from tests.placement.conftest import Run

pytestmark = [pytest.mark.timeout(120)]


def logged(instance: DagsterInstance, run: DagsterRun) -> str:
    return "\n".join(entry.user_message for entry in instance.all_logs(run.run_id))


def test_a_stage_runs_as_a_job(
    run: Run, declare: Callable, instance: DagsterInstance, home: Home, cluster: Cluster
) -> None:
    ended = run("echo", "echo: {text: hello}\n  timeoutSeconds: 60")
    assert ended.is_success, logged(instance, ended)
    result = json.loads((home.run_folder(ended.run_id, "echo") / "responses.json").read_text("utf-8"))
    assert result["worker"] == "pool" and result["result"]["echo"] == {"text": "hello"}
    assert len(cluster.created) == 1 and cluster.jobs() == [], logged(instance, ended)


def test_an_error_of_the_stage_is_told_as_if_it_had_run_here(
    run: Run, fail: None, declare: Callable, instance: DagsterInstance, cluster: Cluster, tmp_path: Path
) -> None:
    ended = run(
        "fail", f"plugin: {{how: user, count: {tmp_path / 'count'}}}\n  retry: {{max_retries: 2, backoff: 0.1}}"
    )
    assert (ended.tags[CAUSE], ended.tags[ATTEMPTS]) == ("user", "1")
    [fault] = faults_of(instance, ended)
    assert fault.message == "fail: there is no column x\ncolumns: a, b"
    [kept] = cluster.jobs()
    assert kept["metadata"]["annotations"]["mloc.step"] == "one-stage/fail"
    assert kept["metadata"]["labels"]["mloc.run"] == ended.run_id


def test_an_image_that_is_not_there_is_not_tried_again(
    run: Run, declare: Callable, instance: DagsterInstance, cluster: Cluster
) -> None:
    declare(image="registry.example/none:7", start_seconds=1)
    ended = run("echo", "echo: {text: hello}\n  timeoutSeconds: 60\n  retry: {max_retries: 2, backoff: 0.1}")
    [fault] = faults_of(instance, ended)
    assert (ended.tags[CAUSE], ended.tags[ATTEMPTS]) == ("user", "1")
    assert "did not start within 1 s (start_seconds): has no image: ErrImagePull: failed to pull" in fault.message
    assert cluster.started == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"context": "elsewhere"}, "the cluster elsewhere, namespace default cannot be set up"),
        ({"env": ["MLOC_TEST_UNSET"]}, "gives pool the environment variables MLOC_TEST_UNSET, which are not set here"),
    ],
)
def test_a_wrong_declaration_is_told(
    changes: dict, told: str, run: Run, declare: Callable, instance: DagsterInstance
) -> None:
    declare(**changes)
    [fault] = faults_of(instance, run("echo", "echo: {text: hello}\n  timeoutSeconds: 60"))
    assert told in fault.message


def test_without_the_package_the_way_out_is_told(
    run: Run, declare: Callable, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    [fault] = faults_of(instance, run("echo", "echo: {text: hello}\n  timeoutSeconds: 60"))
    assert "pip install 'mloc-dagster[k8s]'" in fault.message
