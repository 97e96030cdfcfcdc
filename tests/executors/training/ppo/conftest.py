"""A tiny model that copies a word in one of two styles, and jobs that teach it one of them."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from executors.host import execute
from executors.job import Job
from tests.executors.conftest import MakeJob
from tests.tiny_model import ANSWER, PROMPT, make_tiny_llama

Row = dict[str, str]
PpoJob = Callable[..., Job]


def words(count: int, seed: int) -> list[str]:
    """Random words of small letters."""
    draw = random.Random(seed)
    return ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(3, 6))) for _ in range(count)]


def rows(count: int, seed: int) -> list[Row]:
    """Prompts, each with the preferred answer: the word in capitals."""
    return [{"prompt": PROMPT.format(word=word), "answer": word.upper()} for word in words(count, seed)]


@pytest.fixture(scope="session")
def two_styles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers about as often with the word as with the word in capitals."""
    folder = tmp_path_factory.mktemp("two-styles")
    base = make_tiny_llama(folder / "base")
    both = [
        {"prompt": PROMPT.format(word=word), "response": ANSWER.format(word=styled)}
        for word in words(400, seed=1)
        for styled in (word, word.upper())
    ]
    training = {"max_steps": 100, "per_device_train_batch_size": 16, "learning_rate": 2e-3, "save_strategy": "no"}
    raw = {
        "task_type": "sft",
        "model": {"source": {"type": "local", "identifier": "tiny"}},
        "data": {"prompts": both, "separator": ""},
        "training": training,
    }
    job = Job(task_id="t", task_name="t", stage="s", raw=raw, out=folder / "sft", model_path=base)
    return Path(execute(job).payload["final_model_path"])


@pytest.fixture
def ppo_job(job: MakeJob, two_styles: Path) -> PpoJob:
    """Make a job that rewards capitals: `ppo_job(name="out", lora=..., seed=3, max_steps=5)`."""

    def make(
        name: str = "ppo", *, generation: Any = None, prompts: Any = None, lora: Any = None, **training: Any
    ) -> Job:
        spec: dict[str, Any] = {
            "data": {"prompts": rows(256, seed=2) if prompts is None else prompts, "response_column": "answer"},
            "reward_model": {"type": "function", "identifier": "exact_match"},
            "generation": {"max_new_tokens": 10} | (generation or {}),
            "training": {"per_device_train_batch_size": 16, "logging_steps": 1} | training,
        }
        return job("ppo", spec | ({"lora": lora} if lora else {}), name=name, model=two_styles)

    return make
