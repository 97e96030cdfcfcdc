"""Every shipped task file validates and plans; those of tiny models run unmodified through the mirror."""

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
from tests.mirror import TASK_SPECS, make_mirror

FILES = sorted(TASK_SPECS.rglob("*.yaml"))
NAMES = [str(file.relative_to(TASK_SPECS)) for file in FILES]
RUN = ["quickstart/copy_style.yaml"]  # the others run in tests/task_specs


@pytest.fixture(scope="session")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror of all hub models and data sets that the shipped files name."""
    return make_mirror(tmp_path_factory.mktemp("mirror"))


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_plans(file: Path, tmp_path: Path) -> None:
    plan = compile_plan(load_file(file))
    rows = preview(plan, Home(tmp_path), fresh=False)
    assert [row.key for row in rows] == [step.key for step in plan.steps]
    assert {step.stage.name for step in plan.steps if step.kind == "stage" and step.stage} == {
        s.name for s in plan.task.stages
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_runs_on_a_cpu(name: str, mirror: Path, tmp_path: Path) -> None:
    answer = mloc(tmp_path, "run", "--json", "--on", "cpu", str(TASK_SPECS / name), MLOC_MIRROR=f"file://{mirror}")
    report = json.loads(answer.stdout)
    assert answer.returncode == 0, report["errors"]
    assert report["status"] == "SUCCESS"
    for stage in report["stages"].values():
        folder = Path(stage["folder"])
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        assert all(entry["status"] == "present" for entry in manifest["entries"]), manifest
    if name == "quickstart/copy_style.yaml":
        exact = report["stages"]["compare"]["result"]["metrics"]["exact_match"]
        assert exact["tuned"] - exact["base"] >= 0.7


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
