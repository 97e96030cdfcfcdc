"""Two processes train one policy: each has its own answers, both the same weights."""

from __future__ import annotations

from typing import Any

import pytest

from executors.host import execute
from tests.executors.conftest import result_of, run_host
from tests.executors.training.ppo.conftest import PpoJob

GREEDY: dict[str, Any] = {"do_sample": False}
SETTINGS: dict[str, Any] = {
    "max_steps": 2, "learning_rate": 1e-3, "logging_steps": 1, "save_steps": 1, "generation": GREEDY,
}  # fmt: skip


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_from_the_same_rollouts(ppo_job: PpoJob) -> None:
    alone = ppo_job("alone", per_device_train_batch_size=16, **SETTINGS)
    pair = ppo_job("pair", per_device_train_batch_size=8, nproc_per_node=2, **SETTINGS)
    code, output = run_host(pair)
    assert code == 0, output[-3000:]
    first, second = execute(alone).payload, result_of(pair)["payload"]
    assert (first["world_size"], second["world_size"]) == (1, 2)
    for key in ("reward", "kl", "entropy", "loss", "loss/value", "grad_norm", "answer_tokens"):
        assert [line[key] for line in second["log_history"]] == pytest.approx(
            [line[key] for line in first["log_history"]], rel=2e-3, abs=1e-4
        ), key
    checkpoint = pair.out / "checkpoints" / "checkpoint-2"
    assert {path.name for path in checkpoint.glob("rng_state_*")} == {"rng_state_0.pth", "rng_state_1.pth"}
