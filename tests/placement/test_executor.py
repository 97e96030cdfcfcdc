"""Steps of one run side by side, in forked children; one by one where they must not meet."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest
from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus

from mloc_dagster.definitions import worker
from mloc_dagster.definitions.assets import build_job
from mloc_dagster.definitions.submit import create_run, store_spec, submit_file
from mloc_dagster.placement import inventory
from mloc_dagster.placement.executor import AT_ONCE, DEVICE
from mloc_dagster.placement.failures.cause import CAUSE
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_file, load_text
from mloc_dagster.store.home import Home
from tests.definitions.conftest import get, home, instance, nap, status, workspace, write
from tests.definitions.test_launcher import gone, worker_pid
from tests.waiting import wait_for

__all__ = ["home", "instance", "nap", "workspace"]

_SIDE = """\
apiVersion: mloc/v1
metadata: {{name: {name}, owner: alice}}
spec:
  taskType: nap
  stages:
    - {{name: a, spec: {{plugin: {{seconds: {seconds}}}}}}}
    - {{name: b, dependsOn: [], spec: {{plugin: {{seconds: {seconds}.1}}}}}}
    - {{name: c, dependsOn: [a, b], spec: {{taskType: echo, echo: 1}}}}
"""
_CHAIN = """\
apiVersion: mloc/v1
metadata: {{name: {name}, owner: alice}}
spec: {{taskType: echo, stages: [{{name: a, spec: {{echo: 1}}}}, {{name: b, spec: {{echo: 2}}}}]}}
"""


@pytest.fixture(autouse=True)
def two_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is one CPU."""
    monkeypatch.setenv(AT_ONCE, "2")


def start(instance: DagsterInstance, home: Home, path: Path, text: str, **values: object) -> str:
    """Start a task; returns its run."""
    return submit_file(instance, home, compile_plan(load_file(write(path, text, **values))))


def both(home: Home) -> list[int]:
    """Wait for two naps to begin; returns their processes."""
    wait_for(lambda: len([path for path in home.work.glob("*/pids") if path.read_text()]) == 2, "two naps at a time")
    return [int(pid) for path in home.work.glob("*/pids") for pid in path.read_text().split()]


def times(instance: DagsterInstance, run_id: str) -> dict[str, tuple[float, float]]:
    """Start and end of each stage, by its name."""
    stats = instance.get_run_step_stats(run_id)
    return {stat.step_key.rpartition("__")[2]: (stat.start_time or 0.0, stat.end_time or 0.0) for stat in stats}


def test_steps_that_wait_for_nothing_run_side_by_side(
    instance: DagsterInstance, home: Home, tmp_path: Path, nap: None
) -> None:
    run_id = start(instance, home, tmp_path / "t.yaml", _SIDE, seconds=3)
    both(home)
    assert status(instance, run_id) is DagsterRunStatus.SUCCESS
    found = times(instance, run_id)
    assert max(found["a"][0], found["b"][0]) < min(found["a"][1], found["b"][1])
    assert found["c"][0] >= max(found["a"][1], found["b"][1])
    captured = instance.all_logs(run_id, of_type=DagsterEventType.LOGS_CAPTURED)
    assert len({entry.dagster_event.logs_captured_data.file_key for entry in captured if entry.dagster_event}) == 3


def test_a_lone_step_runs_in_the_runs_own_process(instance: DagsterInstance, home: Home, tmp_path: Path) -> None:
    run_id = start(instance, home, tmp_path / "t.yaml", _CHAIN)
    assert status(instance, run_id) is DagsterRunStatus.SUCCESS
    messages = [entry.message for entry in instance.all_logs(run_id, of_type=DagsterEventType.LOGS_CAPTURED)]
    assert messages == [f"Capturing logs for process (pid: {worker_pid(instance, run_id)})."] * 2


def test_cancelling_ends_the_steps_that_run_side_by_side(
    instance: DagsterInstance, home: Home, tmp_path: Path, nap: None
) -> None:
    run_id = start(instance, home, tmp_path / "t.yaml", _SIDE, seconds=120)
    family = psutil.Process(worker_pid(instance, run_id)).children(recursive=True)
    pids = [*both(home), worker_pid(instance, run_id), *(process.pid for process in family)]
    assert instance.run_launcher.terminate(run_id)
    assert status(instance, run_id) is DagsterRunStatus.CANCELED
    wait_for(lambda: gone(pids), "all processes to end")


@pytest.mark.parametrize("retries", [0, 1])
def test_a_step_whose_process_was_killed_is_tried_again_or_fails_with_the_reason_and_the_other_one_ends_well(
    instance: DagsterInstance, home: Home, tmp_path: Path, nap: None, retries: int
) -> None:
    text = _SIDE.replace("  stages:", f"  retry: {{{{max_retries: {retries}, backoff: 0.1}}}}\n  stages:")
    run_id = start(instance, home, tmp_path / "t.yaml", text, seconds=5)
    both(home)
    step, _ = psutil.Process(worker_pid(instance, run_id)).children()
    os.kill(step.pid, signal.SIGKILL)
    assert status(instance, run_id) is (DagsterRunStatus.SUCCESS if retries else DagsterRunStatus.FAILURE)
    events = instance.all_logs(run_id)
    kinds = [entry.dagster_event_type for entry in events]
    failures, successes = kinds.count(DagsterEventType.STEP_FAILURE), kinds.count(DagsterEventType.STEP_SUCCESS)
    assert (failures, successes) == ((0, 3) if retries else (1, 1))
    assert get(instance, run_id).tags.get(CAUSE) == (None if retries else "worker_lost")
    assert any("The process of step" in entry.message and "signal 9" in entry.message for entry in events)


def test_killing_the_run_kills_its_steps(instance: DagsterInstance, home: Home, tmp_path: Path, nap: None) -> None:
    run_id = start(instance, home, tmp_path / "t.yaml", _SIDE, seconds=120)
    pids = both(home)
    process = psutil.Process(worker_pid(instance, run_id))
    pids += [child.pid for child in process.children(recursive=True)]
    process.kill()
    assert status(instance, run_id) is DagsterRunStatus.FAILURE
    wait_for(lambda: gone(pids), "the steps to end with their run")


def test_steps_that_take_a_gpu_go_one_by_one(
    instance: DagsterInstance, home: Home, tmp_path: Path, nap: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = compile_plan(load_file(write(tmp_path / "t.yaml", _SIDE, seconds=1)))
    monkeypatch.setattr(inventory, "gpus", lambda: (inventory.Device(0, "a100-80gb", 80 << 30),))
    run = create_run(instance, plan, store_spec(home, plan.task), fresh=False, tags=None)
    child = os.fork()  # as a pool does, so that the signal handlers of this process stay
    if child == 0:
        try:
            os._exit(worker.execute(instance, run.run_id).code)
        finally:
            os._exit(70)
    assert os.waitpid(child, 0)[1] == 0
    found = times(instance, run.run_id)
    assert found["b"][0] >= found["a"][1] and get(instance, run.run_id).is_success


def test_only_stages_that_may_take_a_gpu_are_marked() -> None:
    text = _CHAIN.format(name="t").replace(
        "{name: b, spec: {", "{name: b, spec: {resources: {hardware: {gpu: {count: 0}}}, "
    )
    job = build_job(compile_plan(load_text(text)), "t").job
    assert {node.name: DEVICE in node.tags for node in job.nodes_in_topological_order} == {"t__a": True, "t__b": False}
    assert json.loads(json.dumps(dict(job.nodes_in_topological_order[0].tags)))[DEVICE] == "gpu"
