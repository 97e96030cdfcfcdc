"""A tiny model that answers in two styles, each about half of the time."""

from __future__ import annotations

from pathlib import Path

import pytest

from executors.host import execute
from executors.job import Job
from tests.executors.training.styles import both_styles
from tests.tiny_model import make_tiny_llama


@pytest.fixture(scope="session")
def two_styles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The copying Llama after supervised training on both styles of each word."""
    folder = tmp_path_factory.mktemp("two-styles")
    copying = make_tiny_llama(folder / "copying")
    training = {"max_steps": 120, "per_device_train_batch_size": 32, "learning_rate": 1e-3}
    raw = {
        "task_type": "sft",
        "model": {"source": {"type": "local", "identifier": "copying"}},
        "data": {"prompts": both_styles(800, seed=5), "separator": ""},
        "training": training,
    }
    execute(Job(task_id="t", task_name="t", stage="s", raw=raw, out=folder / "run", model_path=copying))
    return folder / "run" / "final_model"
