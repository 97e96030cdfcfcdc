"""Every shipped task file that fits a CPU runs unmodified; hub models and data sets come from a mirror of tiny ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.mirror import TASK_SPECS, make_mirror
from tests.task_specs.test_files import FILES, name_of

MAKE_DEMO = TASK_SPECS / "quickstart" / "tune_smollm2.yaml"
"""Takes minutes on the real model; `make demo` runs it, no test does."""
ELSEWHERE = (
    TASK_SPECS / "quickstart" / "python_questions.yaml",
    TASK_SPECS / "experiments" / "answers_with_context.yaml",
    TASK_SPECS / "quickstart" / "calculator_agent.yaml",
)
"""Take minutes with a real index; tests of their own (rag/test_python_reference.py, agent/test_smollm2.py) run them."""

ALWAYS = ("hello", "copy_style", "lora_sft", "agent_inference", "workflow")
"""Files that `make test` runs; `make test-all` runs all."""

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of one home and one mirror, shared by all files, so that a pulled model is pulled once."""
    root = tmp_path_factory.mktemp("task-specs")
    settings = {
        "MLOC_HOME": str(root / "home"),
        "MLOC_MIRROR": str(make_mirror(root / "mirror")),
        "MLOC_MIRROR_ONLY": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "MLOC_ENGINE_IDLE": "60",
    }
    return {**os.environ, **settings}


def run(file: Path, deployment: dict[str, str], cwd: Path, timeout: float = 280) -> dict[str, Any]:
    """Run a file with `mloc run` and return its report."""
    mloc = [sys.executable, "-c", "from mloc_dagster.cli import main; main()"]
    command = [*mloc, "run", "--on", "cpu", "--json", str(file)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=deployment, cwd=cwd, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, id=name_of(file), marks=[] if file.stem in ALWAYS else pytest.mark.exhaustive)
        for file in FILES
        if file not in (MAKE_DEMO, *ELSEWHERE)
    ],
)
def test_runs_to_success(file: Path, deployment: dict[str, str], tmp_path: Path) -> None:
    report = run(file, deployment, tmp_path)
    assert report["status"] == "SUCCESS"
    for name, stage in report["stages"].items():
        folder = Path(stage["folder"])
        assert stage["result"]["ok"] is True, name
        assert (folder / "responses.json").is_file()
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        assert [entry["name"] for entry in manifest["entries"] if entry["status"] == "missing"] == []
        if "items" in stage["result"]:
            assert all(item["output"] for item in stage["result"]["items"]), name


def test_the_tiny_model_learns_the_style(deployment: dict[str, str], tmp_path: Path) -> None:
    """Reuses the run above when that came first."""
    report = run(TASK_SPECS / "quickstart" / "copy_style.yaml", deployment, tmp_path)
    scores = report["stages"]["compare"]["result"]["metrics"]["exact_match"]
    assert scores["base"] < 0.2
    assert scores["tuned"] >= 0.9
