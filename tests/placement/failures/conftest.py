"""The homes of `tests.definitions`, and task types that fail as they are told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.definitions.conftest import home, installed, instance, nap, workspace

__all__ = ["home", "instance", "nap", "workspace"]

_EXECUTOR = '''
import os, signal, time
from pathlib import Path
from pydantic import BaseModel
from executors.base import ExecutorError, Exhausted, Result

class Fail(BaseModel):
    how: str
    times: int = 9
    count: str

class FailExecutor:
    """fails a number of times, then does well"""
    name, inline, uses, section = "fail", False, frozenset({"plugin"}), Fail
    def run(self, ctx):
        given = Fail.model_validate(ctx.spec.plugin)
        with open(given.count, "a") as file:
            file.write(f"{os.getpid()}\\n")
        if len(Path(given.count).read_text().split()) <= given.times:
            getattr(self, given.how)()
        return Result(payload={"ok": True})
    def user(self):
        raise ExecutorError("there is no column x", "columns: a, b")
    def memory(self):
        bytearray(1 << 60)
    def greedy(self):
        bytearray(3 << 30)[:] = bytes(3 << 30)
    def cuda(self):
        class OutOfMemoryError(RuntimeError): pass
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    def killed(self):
        os.kill(os.getpid(), signal.SIGKILL)
    def stopped(self):
        os.kill(os.getpid(), signal.SIGSTOP)
    def exhausted(self):
        raise Exhausted("shard 1 of 3 failed 4 times")
    def crash(self):
        raise RuntimeError("the library fell over")
    def slow(self):
        time.sleep(60)
    def busy(self):
        begun = time.monotonic()
        sum(range(10**7))
        sum(range(int(10**7 * 4.5 / (time.monotonic() - begun))))  # one call, in which no other thread runs
'''


@pytest.fixture
def fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install a package with the task type `fail`, for this process and those that it starts."""
    with installed("fail", _EXECUTOR, tmp_path / "failing", monkeypatch):
        yield
