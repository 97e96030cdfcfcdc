"""An engine without a model, and inference jobs on it, sharded or not."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import executors.inference
from executors.context import TaskContext
from executors.inference.engine import Completion, Finished, Sampling, Weights
from executors.job import Job
from executors.weights import WeightsDigest

DIE, FAIL, BROKEN, ASLEEP = "die", "fail", "broken", "asleep"
"""Prompts that kill the process or raise an error at the first attempt, raise it until mended, or take a second."""


class FakeEngine:
    """Writes down each row that it generates; its texts tell the row's number, seed and prompt."""

    name = "fake"
    context = 64

    def __init__(self, notes: Path) -> None:
        self.warnings = ["a fake"]
        self._notes = notes

    def tokenizer(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": list(map(ord, text))}

    def generate(
        self, prompts: Mapping[int, list[int]], sampling: Sampling, finished: Finished
    ) -> dict[int, list[Completion]]:
        found = {}
        for row, tokens in prompts.items():
            text = "".join(map(chr, tokens))
            self._obey(row, text)
            told = hashlib.sha256(f"{row} {sampling.seed_of(row)} {text}".encode()).hexdigest()[:8]
            found[row] = [Completion(f"{told}-{draw}", "stop", 3) for draw in range(sampling.n)]
            finished({row: found[row]})
        return found

    def _obey(self, row: int, text: str) -> None:
        with self._notes.open("a") as file:
            file.write(f"{row}\n")
        first = self._notes.read_text().splitlines().count(str(row)) == 1
        if DIE in text and first:
            os.kill(os.getpid(), signal.SIGKILL)
        if (FAIL in text and first) or (BROKEN in text and not self._notes.with_name("mended").exists()):
            raise RuntimeError(f"row {row} is broken")
        if ASLEEP in text:
            time.sleep(1)

    def close(self) -> None:
        pass


def use_fake(patch: pytest.MonkeyPatch, notes: Path) -> None:
    """Put the fake engine in the place of the real ones."""

    def load(ctx: TaskContext, weights: Weights, used: WeightsDigest) -> FakeEngine:
        return FakeEngine(notes)

    used = WeightsDigest("sha256:0", ("sha256:0",))
    patch.setattr(executors.inference, "load_engine", load)
    patch.setattr(executors.inference, "weights_of", lambda ctx: (Weights(notes.parent), used))


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """Use the fake engine; returns the rows that were generated, in order."""
    path = tmp_path / "generated"
    path.touch()
    use_fake(monkeypatch, path)
    return lambda: [int(line) for line in path.read_text().splitlines()]


def inference_job(out: Path, data: dict[str, Any], shards: int = 0, **more: Any) -> Job:
    """A job of at least so many shards; 0: unsharded."""
    raw: dict[str, Any] = {
        "task_type": "inference",
        "model": {"source": {"type": "local", "identifier": "fake"}},
        "data": data,
        "inference": {"seed": 5, "n": 2},
        "retry": {"max_retries": 2, "backoff": 0.1},
        **more,
    }
    if shards:
        raw |= {"parallel": {"enabled": True, "max_shards": shards}, "resources": {"replicas": shards}}
    return Job(task_id="t", task_name="t", stage="s", raw=raw, out=out, cache=out.parent / "cache")
