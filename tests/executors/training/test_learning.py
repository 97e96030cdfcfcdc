"""Supervised training on the tiny model learns what it is shown: held-out words, three seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from executors.host import execute
from tests.executors.conftest import MakeJob
from tests.executors.training.styles import PROMPT, WANTED, wanted_share, words
from tests.tiny_model import make_tiny_llama


@pytest.mark.learning
@pytest.mark.slow
def test_sft_writes_what_it_was_shown(job: MakeJob, tmp_path: Path) -> None:
    copying = make_tiny_llama(tmp_path / "copying")
    rows = [{"prompt": PROMPT.format(word=word), "response": WANTED.format(word=word)} for word in words(400, seed=5)]
    held_out = words(24, seed=99)
    assert wanted_share(copying, held_out) < 0.05
    for seed in (1, 2, 3):
        training = {"max_steps": 60, "batch_size": 16, "learning_rate": 1e-3, "seed": seed}
        training["per_device_train_batch_size"] = training.pop("batch_size")
        spec = {"data": {"prompts": rows, "separator": ""}, "training": training}
        payload = execute(job("sft", spec, name=f"sft{seed}", model=copying)).payload
        assert wanted_share(Path(payload["final_model_path"]), held_out) >= 0.9
