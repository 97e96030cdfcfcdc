"""The homes of `tests.definitions`, a task type that tells what it sees, and the pools of a home."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mloc_dagster.store.home import Home
from tests.definitions.conftest import home, installed, instance, nap, workspace

__all__ = ["home", "instance", "nap", "workspace"]

LOOK = """\
apiVersion: mloc/v1
kind: LookTask
metadata: {{name: {name}, owner: alice}}
spec: {{taskType: look, plugin: {{text: "{says}"}}}}
"""
_EXECUTOR = '''
import os, sys
from pydantic import BaseModel
from executors.base import Result

SEEN = []

class Look(BaseModel):
    text: str

class LookExecutor:
    """tells what it sees"""
    name, inline, uses, section = "look", True, frozenset({"plugin"}), Look
    def run(self, ctx):
        text = ctx.spec.plugin["text"]
        print("said", text if text.isalpha() else "something")
        os.write(2, b"warned\\n")
        SEEN.append(text)
        return Result(payload={
            "seen": list(SEEN), "pid": os.getpid(), "session": os.getsid(0), "folder": os.getcwd(),
            "version": VERSION, "only_here": os.environ.get("ONLY_HERE"), "text": text,
        })
'''


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install a package with the inline task type `look`; returns its file."""
    with installed("look", f"VERSION = 1\n{_EXECUTOR}", tmp_path / "looks", monkeypatch) as file:
        yield file


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Pools do not end between two runs of a test, however slow the machine is; they end after it."""
    monkeypatch.setenv("MLOC_POOL_IDLE", "300")
    yield
    for name in ("home", "other"):
        for process in pools(Home(tmp_path / name)):
            process.terminate()


def pools(home: Home) -> list[psutil.Process]:
    """The pool processes of a home: not the workers that were forked from them."""
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            if "mloc_dagster.definitions.pool" in command and str(home.root) in " ".join(command):
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.ppid() not in {other.pid for other in found}]
