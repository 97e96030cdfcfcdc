"""A home of its own, and steps of task files that are carried out in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRun

from mloc_dagster.definitions import worker
from mloc_dagster.definitions.submit import create_run, store_spec
from mloc_dagster.placement.local.work import RunInfo, StepOutcome, run_step
from mloc_dagster.plan import Plan, compile_plan
from mloc_dagster.spec import load_text
from mloc_dagster.spec.base import Json
from mloc_dagster.store.home import Home
from tests.definitions.conftest import get, nap

__all__ = ["nap"]

HEAD = "apiVersion: mloc/v1\nmetadata: {name: %s, owner: ann}\nspec:\n"


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """An empty home that the environment names."""
    monkeypatch.setenv("MLOC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MLOC_ON", raising=False)
    return Home(tmp_path / "home")


@pytest.fixture
def info(own_home: Home) -> RunInfo:
    """A run whose task id is `task-1`."""
    return RunInfo("run-1", "task-1", own_home, fresh=False, on_cpu=True, cancelled=lambda: False)


def plan_of(spec: str, folder: Path, name: str = "t") -> Plan:
    """Return the plan of a task file; `spec` is what stands below its `spec:`."""
    return compile_plan(load_text(HEAD % name + spec, base=folder))


def run_all(plan: Plan, info: RunInfo, report: Callable[[dict[str, Json]], None] | None = None) -> list[StepOutcome]:
    """Carry out all steps of a plan."""
    return [run_step(plan, step, info, report or (lambda progress: None)) for step in plan.steps]


def next_run(info: RunInfo, number: int, **changes: Json) -> RunInfo:
    """Return another run, of another task."""
    return replace(info, run_id=f"run-{number}", task_id=f"task-{number}", **changes)


Run = Callable[..., DagsterRun]


@pytest.fixture
def run(instance: DagsterInstance, home: Home, tmp_path: Path) -> Run:
    """Run a stage of a task type to its end in this process."""

    def do(task_type: str, more: str, name: str = "one-stage") -> DagsterRun:
        text = (
            f"apiVersion: mloc/v1\nmetadata: {{name: {name}, owner: ann}}\nspec:\n  taskType: {task_type}\n  {more}\n"
        )
        plan = compile_plan(load_text(text, base=tmp_path))
        made = create_run(instance, plan, store_spec(home, plan.task), fresh=False, tags=None)
        worker.execute(instance, made.run_id)
        return get(instance, made.run_id)

    return do
