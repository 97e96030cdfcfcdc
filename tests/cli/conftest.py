"""The real command in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from mloc_dagster.cli import app
from mloc_dagster.store.home import Home
from tests.definitions.conftest import ECHO, NAP, nap, write

__all__ = ["ECHO", "NAP", "nap", "write"]

ROOT = Path(__file__).absolute().parents[2]
MLOC = [sys.executable, "-c", "from mloc_dagster.cli import main; main()"]


@dataclass(frozen=True)
class Answer:
    """What a command said, and its exit code."""

    code: int
    out: str
    errors: str


@dataclass(frozen=True)
class Mloc:
    """Runs `mloc` in a folder."""

    folder: Path

    @property
    def home(self) -> Home:
        """The home of its commands."""
        return Home(self.folder / ".mloc")

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start a command."""
        return subprocess.Popen(
            [*MLOC, *arguments],
            cwd=self.folder,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __call__(self, *arguments: str, **environment: str) -> Answer:
        """Run a command to its end; a traceback fails the test."""
        process = self.start(*arguments, **environment)
        try:
            out, errors = process.communicate(timeout=120)
        finally:
            process.kill()
        assert "Traceback" not in out + errors, out + errors
        return Answer(process.returncode, out, errors)

    def here(self, *arguments: str) -> Answer:
        """Run a command in this process, which is quicker; for those that only look at runs."""
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("MLOC_HOME", str(self.home.root))
            patched.setenv("DAGSTER_HOME", str(self.home.dagster))
            result = CliRunner().invoke(app, ["--home", str(self.home.root), *arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Answer(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def mloc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mloc]:
    """The command in an empty folder, whose home is `.mloc` there; what it leaves running is ended."""
    for name in ("MLOC_HOME", "DAGSTER_HOME", "MLOC_ON", "MLOC_TASK_SPECS", "MLOC_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "200")
    yield Mloc(tmp_path)
    for process in processes_of(tmp_path):
        process.kill()


def processes_of(folder: Path) -> list[psutil.Process]:
    """Processes whose home is in a folder, zombies left out."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("MLOC_HOME", "").startswith(str(folder))
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found
