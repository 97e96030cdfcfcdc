"""The short form of the soak: kills at random while tasks run, then nothing is lost, doubled or left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.soak.service import ROOT, processes_of
from mloc_dagster.store.home import Home


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_whoever_is_killed_each_task_comes_to_its_end_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--kills", "25", "--tasks", "20", "--minutes", "0.6"]
    named = {name: value for name, value in os.environ.items() if not name.startswith(("MLOC_", "DAGSTER_"))}
    done = subprocess.run(
        [*command, "--seed", "3", "--keep", str(tmp_path / "soak")],
        cwd=ROOT, env={**named, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "\n0 faults in " in done.stdout, done.stdout + done.stderr
    assert processes_of(Home(tmp_path / "soak" / "home")) == []
