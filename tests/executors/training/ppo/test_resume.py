"""An interrupted PPO training goes on where it was, and ends with the same weights."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from executors.base import ExecutorError, Result
from executors.host import execute
from executors.training.checkpoints import newest_complete
from tests.executors.conftest import start_host
from tests.executors.training.ppo.conftest import PpoJob
from tests.executors.training.test_resume import kill_after

STEPS = 8
SETTINGS = {
    "max_steps": STEPS, "save_steps": 1, "save_total_limit": 2, "num_mini_batches": 2, "learning_rate": 1e-3,
    "adap_kl_ctrl": True, "horizon": 200, "seed": 5,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Add in the same order as the host does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def history(result: Result) -> list[dict[str, float]]:
    """The log without what depends on the clock."""
    found: list[dict[str, float]] = result.payload["log_history"]
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in found]


@pytest.mark.slow
def test_kill_nine_at_half_then_the_same_weights(ppo_job: PpoJob) -> None:
    cut = ppo_job("cut", **SETTINGS)
    assert kill_after(cut, STEPS // 2, signal.SIGKILL) == -signal.SIGKILL
    assert not (cut.out / "result.json").exists()
    resumed, whole = execute(cut), execute(ppo_job("whole", **SETTINGS))
    resumed_from = Path(resumed.payload["resume_from_path"])
    assert STEPS // 2 <= int(resumed_from.name.split("-")[1]) < STEPS
    assert resumed.metadata["weights_digest"] == whole.metadata["weights_digest"]
    assert history(resumed) == history(whole)


@pytest.mark.slow
def test_sigterm_while_sampling_loses_no_step(ppo_job: PpoJob) -> None:
    """The answers are long, so that the signal comes while they are sampled; no checkpoint was due by then."""
    settings: dict[str, Any] = SETTINGS | {"save_steps": 100, "max_steps": 3, "per_device_train_batch_size": 4}
    settings |= {"generation": {"max_new_tokens": 120, "temperature": 20.0}, "lora": {"r": 8}}
    cut = ppo_job("cut", **settings)
    process = start_host(cut)
    progress, end = cut.out / "logs" / "progress.jsonl", time.monotonic() + 60
    while not (progress.exists() and '"done": 1' in progress.read_text()):
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    checkpoint = newest_complete(cut.out / "checkpoints")
    assert checkpoint is not None and not (cut.out / "error.json").exists()
    assert 1 <= int(checkpoint.name.split("-")[1]) < 3
    resumed, whole = execute(cut), execute(ppo_job("whole", **settings))
    assert resumed.payload["resume_from_path"] == str(checkpoint)
    assert resumed.metadata["weights_digest"] == whole.metadata["weights_digest"]


def test_the_coefficient_and_the_value_head_come_back(ppo_job: PpoJob) -> None:
    first = ppo_job("first", **SETTINGS | {"max_steps": 3})
    execute(first)
    checkpoints = first.out / "checkpoints"
    kept = json.loads((checkpoints / "checkpoint-2" / "ppo_state.json").read_text())["kl_coef"]
    assert kept != 0.05
    settings = SETTINGS | {"max_steps": 3, "resume_from_path": str(checkpoints / "checkpoint-2")}
    second = execute(ppo_job("second", **settings)).payload
    assert second["log_history"][-1]["kl_coef"] == kept
    assert second["resume_from_path"] == str(checkpoints / "checkpoint-2")
    (checkpoints / "checkpoint-2" / "value_head.safetensors").unlink()
    with pytest.raises(ExecutorError, match="no checkpoint of taskType ppo"):
        execute(ppo_job("third", **settings))


def test_a_finished_training_trains_no_further(ppo_job: PpoJob) -> None:
    one = ppo_job("done", **SETTINGS | {"max_steps": 2})
    first = execute(one)
    again = execute(one)
    assert again.payload["resume_from_path"].endswith("checkpoint-2")
    assert again.metadata["weights_digest"] == first.metadata["weights_digest"]
    assert again.payload["log_history"] == first.payload["log_history"]
