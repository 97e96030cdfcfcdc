"""Every shipped task file plans; what the command says of a mistake, and of work that is done already."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mloc_dagster.placement.local.preview import preview
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_file
from mloc_dagster.store.home import Home
from tests.mirror import TASK_SPECS

FILES = sorted(TASK_SPECS.rglob("*.yaml"))
NAMES = [str(file.relative_to(TASK_SPECS)) for file in FILES]


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_plans(file: Path, tmp_path: Path) -> None:
    plan = compile_plan(load_file(file))
    rows = preview(plan, Home(tmp_path), fresh=False)
    assert [row.key for row in rows] == [step.key for step in plan.steps]
    assert {step.stage.name for step in plan.steps if step.kind == "stage" and step.stage} == {
        s.name for s in plan.task.stages
    }


def test_a_mistake_is_told_with_its_place_and_exit_code_2(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("apiVersion: mloc/v1\nspec:\n  taskType: infrence\n", "utf-8")
    answer = mloc(tmp_path, "run", str(bad))
    assert answer.returncode == 2
    assert "bad.yaml:3:13 spec.taskType" in answer.stderr and "did you mean inference?" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_second_run_of_the_same_file_reuses_the_first(tmp_path: Path) -> None:
    hello = str(TASK_SPECS / "quickstart" / "hello.yaml")
    first, second = (json.loads(mloc(tmp_path, "run", "--json", hello).stdout) for _ in range(2))
    assert second["stages"]["echo"]["metadata"]["reused_from"] == f"{first['task_id']}/echo"
    fresh = json.loads(mloc(tmp_path, "run", "--json", "--fresh", hello).stdout)
    assert "reused_from" not in fresh["stages"]["echo"]["metadata"]


def mloc(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder, with a home of its own there."""
    environment = {**os.environ, "MLOC_HOME": str(folder / ".mloc"), "OMP_NUM_THREADS": "1", **more}
    environment.pop("DAGSTER_HOME", None)
    command = [sys.executable, "-c", "from mloc_dagster.cli import main; main()", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
