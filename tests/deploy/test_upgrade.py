"""A home that earlier code made opens with the code of now: its history is listed, and what waits runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import processes_of
from tests.docker_engine import ROOT
from tests.waiting import wait_for

EARLIER = "a714a61758a7d9e2865b55a30396712727570dc8"
"""Before there were usage, Docker and Kubernetes workers; where there is a tag, the last one is taken."""
TASK = "apiVersion: mloc/v1\nmetadata: {{name: {name}, owner: ann}}\nspec: {{taskType: echo, echo: {{text: {name}}}}}\n"
MAIN = "from mloc_dagster.cli import main; main()"


@dataclass(frozen=True)
class Code:
    """A tree of code, and a folder whose home it works on."""

    tree: Path
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What its processes are given."""
        left_out = ("MLOC_HOME", "DAGSTER_HOME", "MLOC_ON", "MLOC_TASK_SPECS", "MLOC_WORKERS")
        kept = {name: value for name, value in os.environ.items() if name not in left_out}
        home = str(self.folder / "home")
        return {**kept, "PYTHONPATH": str(self.tree), "MLOC_HOME": home, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    def __call__(self, *arguments: str) -> str:
        """Run a command of it."""
        done = subprocess.run(
            [sys.executable, "-c", MAIN, *arguments], cwd=self.folder, env=self.environment, capture_output=True,
            text=True, timeout=150,
        )  # fmt: skip
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
        return done.stdout


def earlier(folder: Path) -> Path:
    """Lay the earlier code out; skips where the history is not there."""

    def git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True)

    tags = git("describe", "--tags", "--abbrev=0", "HEAD^").stdout.decode().strip()
    archive = git("archive", tags or EARLIER, "mloc_dagster", "executors", "task_specs")
    if archive.returncode:
        pytest.skip("this checkout has no history: git fetch --unshallow")
    folder.mkdir()
    subprocess.run(["tar", "-C", str(folder), "-x"], input=archive.stdout, check=True)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_home_of_earlier_code(tmp_path: Path) -> None:
    before, now = Code(earlier(tmp_path / "earlier"), tmp_path), Code(ROOT, tmp_path)
    for name in ("old", "waits", "new"):
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name))
    told = before("run", "old.yaml")
    assert "old" in told
    settings = tmp_path / "home" / "dagster" / "dagster.yaml"
    text = settings.read_text().replace("without_daemon: launch", "without_daemon: wait")
    assert "wait" in text and yaml.safe_load(text)
    settings.write_text(text)
    before("submit", "waits.yaml")
    module = "import mloc_dagster; print(mloc_dagster.__file__)"
    shown = subprocess.run(
        [sys.executable, "-c", module], cwd=tmp_path, env=before.environment, capture_output=True, text=True
    ).stdout
    assert str(tmp_path / "earlier") in shown, "it was the earlier code that ran"
    (old,) = [one for one in listed(now) if one["task"] == "old"]
    assert old["status"] == "SUCCESS" and "old" in now("show", old["task_id"])
    (result,) = (tmp_path / "home" / "results").glob(f"{old['task_id']}/*/responses.json")
    assert "old" in json.loads(result.read_text())["result"]["echo"].values()
    daemon = subprocess.Popen(
        [sys.executable, "-c", MAIN, "daemon"], cwd=tmp_path, env=now.environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: statuses(now) == {"old": "SUCCESS", "waits": "SUCCESS"}, "the task that waited", 120)
        now("run", "new.yaml")
    finally:
        daemon.terminate()
        daemon.wait(30)
        for process in processes_of(tmp_path):
            process.kill()
    assert statuses(now) == {"old": "SUCCESS", "waits": "SUCCESS", "new": "SUCCESS"}
    assert "ann" in now("usage")


def listed(code: Code) -> list[dict]:
    return json.loads(code("list", "--json"))


def statuses(code: Code) -> dict[str, str]:
    return {one["task"]: one["status"] for one in listed(code)}
