"""Homes with a real Dagster instance, a workspace of task files, and a task type that takes its time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus

from mloc_dagster.definitions.instance import open_instance
from mloc_dagster.spec import task_types
from mloc_dagster.store.home import Home
from tests.waiting import wait_for

ROOT = Path(__file__).absolute().parents[2]
ECHO = """\
apiVersion: mloc/v1
kind: Pipeline
metadata: {{name: {name}, owner: alice, project: demo}}
spec:
  taskType: echo
  stages:
    - {{name: first, spec: {{echo: {{text: one}}}}}}
    - {{name: second, dependsOn: [first], spec: {{echo: {{text: two}}}}}}
"""
NAP = """\
apiVersion: mloc/v1
kind: NapTask
metadata: {{name: {name}, owner: alice}}
spec: {{taskType: nap, plugin: {{seconds: {seconds}}}}}
"""
_EXECUTOR = '''
import os, subprocess, sys, time
from pydantic import BaseModel
from executors.base import Interrupted, Result

class Nap(BaseModel):
    seconds: float = 60

class NapExecutor:
    """takes a nap, beside a child process"""
    name, inline, uses, section = "nap", False, frozenset({"plugin"}), Nap
    def run(self, ctx):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
        (ctx.out / "pids").write_text(f"{os.getpid()} {child.pid}")
        end = time.monotonic() + float(ctx.spec.plugin["seconds"])
        while time.monotonic() < end:
            if ctx.stop.is_set():
                raise Interrupted
            time.sleep(0.05)
        child.kill()
        return Result(payload={"slept": True})
'''


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """An empty home beside an empty workspace; both named by the environment, as for every process started here."""
    found = Home(tmp_path / "home")
    (tmp_path / "task_specs").mkdir()
    monkeypatch.setenv("MLOC_HOME", str(found.root))
    monkeypatch.setenv("DAGSTER_HOME", str(found.dagster))
    monkeypatch.setenv("MLOC_TASK_SPECS", str(tmp_path / "task_specs"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return found


@pytest.fixture
def workspace(home: Home) -> Path:
    """The folder of task files."""
    return home.root.parent / "task_specs"


@pytest.fixture
def instance(home: Home) -> Iterator[DagsterInstance]:
    """The home's own instance, with our launcher; runs that a test leaves are ended."""
    with open_instance(home) as found:
        yield found
        for run in found.get_runs():
            if not run.is_finished:
                found.run_launcher.terminate(run.run_id)
                wait_for(lambda run=run: ended(found, run.run_id), "the run to end")


@pytest.fixture
def nap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install a package with the task type `nap`, for this process and those that it starts."""
    with installed("nap", _EXECUTOR, tmp_path / "site", monkeypatch):
        yield


@contextmanager
def installed(name: str, code: str, site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install the module `<name>s` with `<Name>Executor`, for the task type `name`; gives the module's file."""
    module = f"{name}s"
    info = site / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (site / f"{module}.py").write_text(code)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mloc.executors]\n{name} = {module}:{name.title()}Executor\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(ROOT)]))
    task_types.known.cache_clear()
    yield site / f"{module}.py"
    sys.modules.pop(module, None)
    task_types.known.cache_clear()


def write(path: Path, text: str = ECHO, **values: object) -> Path:
    """Write a task file, named after its path unless `name` is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.format(**{"name": path.stem, **values}), encoding="utf-8")
    return path


def get(instance: DagsterInstance, run_id: str) -> DagsterRun:
    """Return a run that is there."""
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run


def ended(instance: DagsterInstance, run_id: str) -> bool:
    """Whether a run is over."""
    return get(instance, run_id).is_finished


def status(instance: DagsterInstance, run_id: str) -> DagsterRunStatus:
    """Wait for a run's end and return how it ended."""
    wait_for(lambda: ended(instance, run_id), f"run {run_id} to end", 120)
    return get(instance, run_id).status
