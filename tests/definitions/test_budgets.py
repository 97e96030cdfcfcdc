"""A budget that refuses new work holds at every door: the inbox, the run coordinator of the web server, a schedule."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRunStatus, build_schedule_context, build_sensor_context

from mloc_dagster.definitions.added import AddedFiles
from mloc_dagster.definitions.inbox import take
from mloc_dagster.definitions.schedules import schedules_of, sensors_of
from mloc_dagster.definitions.submit import submit_file
from mloc_dagster.placement.queue.coordinator import QueueCoordinator
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_file
from mloc_dagster.store.home import Home
from mloc_dagster.usage.budgets import BudgetExceeded, refuse_run
from tests.definitions.conftest import status, write

TASK = """\
apiVersion: mloc/v1
metadata: {{name: {name}, owner: {owner}, project: demo}}
spec:
  taskType: echo
  echo: {{text: hello}}
  schedule: 0 3 * * *
  triggers: {{inbox: {inbox}}}
"""
NONE_LEFT = "budgets: [{owner: ann, cpu_hours: 0, period: total, action: refuse}]\n"


@pytest.fixture
def used_up(instance: DagsterInstance, home: Home) -> Home:
    """A home where ann may do no more, and bob may."""
    (home.root / "usage.yaml").write_text(NONE_LEFT)
    return home


def file(folder: Path, owner: str) -> Path:
    return write(folder / f"of-{owner}.yaml", TASK, owner=owner, inbox=folder / "in")


def test_a_drop_is_put_aside_with_the_figures(instance: DagsterInstance, used_up: Home) -> None:
    for owner in ("ann", "bob"):
        file(used_up.inbox, owner)
    time.sleep(1.1)
    told = list(take(instance, used_up))
    assert told[0] == "rejected of-ann.yaml: a budget" and told[1].startswith("accepted of-bob.yaml")
    said = (used_up.inbox / "rejected" / "of-ann.yaml.errors.txt").read_text()
    assert "owner ann has used 0 of 0 core-hours in all; new work is refused" in said and "usage.yaml" in said
    (run,) = instance.get_runs()
    assert run.tags["mloc/owner"] == "bob" and status(instance, run.run_id) is DagsterRunStatus.SUCCESS


def test_the_web_server_refuses_what_comes_by_the_ui(instance: DagsterInstance, used_up: Home, tmp_path: Path) -> None:
    assert isinstance(instance.run_coordinator, QueueCoordinator)
    instance.run_coordinator.gate = refuse_run
    with pytest.raises(BudgetExceeded, match="owner ann has used 0 of 0 core-hours"):
        submit_file(instance, used_up, compile_plan(load_file(file(tmp_path, "ann"))))
    (refused,) = instance.get_runs()
    assert refused.status is DagsterRunStatus.FAILURE
    run_id = submit_file(instance, used_up, compile_plan(load_file(file(tmp_path, "bob"))))
    assert status(instance, run_id) is DagsterRunStatus.SUCCESS


def test_a_tick_says_why_nothing_runs(instance: DagsterInstance, used_up: Home, tmp_path: Path) -> None:
    AddedFiles(used_up).add(load_file(file(tmp_path, "ann")))
    (schedule,), (sensor,) = schedules_of(used_up), sensors_of(used_up)
    told = schedule.evaluate_tick(build_schedule_context(instance))
    assert not told.run_requests and "new work is refused" in (told.skip_message or "")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_text("a")
    os.utime(tmp_path / "in" / "a", (0, 0))
    looked = sensor.evaluate_tick(build_sensor_context(instance, sensor_name=sensor.name))
    assert not looked.run_requests and "new work is refused" in (looked.skip_message or "")
    (used_up.root / "usage.yaml").write_text("budgets: []\n")
    again = sensor.evaluate_tick(build_sensor_context(instance, sensor_name=sensor.name, cursor=looked.cursor))
    assert len(again.run_requests or ()) == 1, "what came while the budget was used up is not forgotten"
