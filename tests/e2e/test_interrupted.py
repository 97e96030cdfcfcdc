"""Nothing is lost: a killed worker, a cancelled task and a closed terminal, with the real command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mloc_dagster.placement.local.warm import stages_of
from tests.tiny_model import make_tiny_llama

MLOC = [sys.executable, "-c", "from mloc_dagster.cli import main; main()"]
STEPS, EVERY = 1200, 40
FILE = f"""\
apiVersion: mloc/v1
kind: Training
metadata: {{name: long, owner: t, project: t}}
spec:
  taskType: lora_sft
  resources: {{hardware: {{gpu: {{count: 0}}}}}}
  model: {{source: {{type: local, identifier: ./model}}}}
  data:
    prompts: [{{prompt: "a b", response: "c d"}}, {{prompt: "e f", response: "g h"}}]
  lora: {{r: 4, dropout: 0.1}}
  training: {{max_steps: {STEPS}, batch_size: 2, logging_steps: {EVERY}, save_steps: {EVERY}, max_seq_length: 32}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with a model, a task file and a home; whatever still works in it is ended."""
    make_tiny_llama(tmp_path / "model", steps=0)
    (tmp_path / "long.yaml").write_text(FILE, "utf-8")
    yield tmp_path
    for process in of_home(tmp_path):
        process.kill()


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "MLOC_HOME": str(folder / ".mloc"), "OMP_NUM_THREADS": "1"}
    environment.pop("DAGSTER_HOME", None)
    return subprocess.Popen(
        [*MLOC, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def mloc(folder: Path, *arguments: str) -> tuple[int, str]:
    process = start(folder, *arguments)
    out, errors = process.communicate(timeout=240)
    assert "Traceback" not in errors, errors
    return process.returncode, out


def of_home(folder: Path, module: str = "") -> list[psutil.Process]:
    """The worker and host processes of a home; a stage that started warm has its home in its command line alone."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            home = str(folder / ".mloc")
            ours = process.environ().get("MLOC_HOME") == home or any(part.startswith(f"{home}/") for part in command)
        except psutil.Error:
            continue
        if ours and "-m" in command and process.status() != psutil.STATUS_ZOMBIE and any(module in c for c in command):
            found.append(process)
    return found


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)
    return value


def well_begun(folder: Path) -> Callable[[], bool]:
    def reached() -> bool:
        marks = folder.glob(".mloc/work/*/checkpoints/checkpoint-*/complete.json")
        return any(int(mark.parent.name.split("-")[1]) >= STEPS // 10 for mark in marks)

    return reached


def training(report: dict[str, Any]) -> dict[str, Any]:
    (stage,) = report["stages"].values()
    return stage


def next_attempt(folder: Path, task: str) -> str | None:
    """The id of the run that went on from a task's, once it has succeeded."""
    rows = json.loads(mloc(folder, "list", "--json")[1])
    return next((row["task_id"] for row in rows if row["replay_of"] == task and row["status"] == "SUCCESS"), None)


@pytest.mark.slow
def test_a_killed_worker_is_told_and_the_next_attempt_goes_on(folder: Path) -> None:
    task = json.loads(mloc(folder, "submit", "--json", "--on", "cpu", "long.yaml")[1])["task_id"]
    wait_for("a tenth of the training", well_begun(folder))
    stage = of_home(folder, "executors.host")[0]
    next(worker for worker in of_home(folder) if stage in [*worker.children(), *stages_of([worker.pid])]).kill()
    attempt = wait_for("the next attempt to end well", lambda: next_attempt(folder, task), 300)
    code, shown = mloc(folder, "show", "--json", task)
    assert code == 0 and json.loads(shown)["status"] == "FAILURE"
    assert "is gone" in shown and "(killed, or out of memory)" in shown

    code, out = mloc(folder, "show", "--json", attempt)
    again = training(json.loads(out))
    assert code == 0
    assert int(again["result"]["resume_from_path"].rpartition("-")[2]) >= STEPS // 10
    assert again["result"]["metrics"]["steps"] == STEPS
    code, out = mloc(folder, "run", "--json", "--on", "cpu", "long.yaml")
    third = training(json.loads(out))
    assert third["metadata"]["reused_from"].startswith(json.loads(out)["task_id"]) is False
    assert third["metadata"]["weights_digest"] == again["metadata"]["weights_digest"]


@pytest.mark.slow
def test_cancel_ends_all_processes_and_keeps_what_was_stored(folder: Path) -> None:
    running = start(folder, "run", "--json", "--on", "cpu", "long.yaml")
    wait_for("a tenth of the training", well_begun(folder))
    begun = time.monotonic()
    code, out = mloc(folder, "cancel", "long")
    assert code == 0 and "CANCELED" in out, out
    assert time.monotonic() - begun < 30
    report = json.loads(running.communicate(timeout=60)[0])
    assert (running.returncode, report["status"]) == (130, "CANCELED")
    wait_for("the end of all its processes", lambda: not of_home(folder), 10)
    code, out = mloc(folder, "run", "--json", "--on", "cpu", "long.yaml")
    assert code == 0
    assert int(training(json.loads(out))["result"]["resume_from_path"].rpartition("-")[2]) >= STEPS // 10


@pytest.mark.slow
def test_a_closed_terminal_does_not_end_the_task_and_a_second_run_waits_for_it(folder: Path) -> None:
    first = start(folder, "run", "--json", "--on", "cpu", "long.yaml")
    wait_for("a tenth of the training", well_begun(folder))
    first.kill()
    first.communicate(timeout=30)
    code, out = mloc(folder, "run", "--json", "--on", "cpu", "long.yaml")
    assert code == 0
    second = training(json.loads(out))
    assert second["metadata"]["reused_from"], "the first run had done the work"
    assert second["result"]["resume_from_path"] is None
