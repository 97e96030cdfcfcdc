"""Reward modelling, DPO and GRPO that were killed go on exactly where they were."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from executors.job import Job
from executors.training.checkpoints import MARKER
from tests.executors.conftest import MakeJob, result_of, run_host
from tests.executors.training.test_resume import kill_after, losses

STEPS = 24
PAIRS = [{"prompt": f"n{i}", "chosen": str(i * 7), "rejected": str(i * 3)} for i in range(20)]
ROWS: dict[str, dict[str, Any]] = {
    "reward": {"data": {"preferences": PAIRS}},
    "dpo": {"data": {"preferences": PAIRS}},
    "grpo": {
        "data": {"prompts": [pair["prompt"] for pair in PAIRS]},
        "generation": {"max_new_tokens": 6},
        "reward_model": {"type": "function", "identifier": "length"},
    },
}
BUFFERED = {"steps_per_generation": 3, "num_iterations": 2, "num_generations": 4, "beta": 0.1}
"""Six updates from each batch of samples: a checkpoint after step 8 or 16 has some of them still to make."""
MORE = [("reward", "full"), ("reward", "lora"), ("dpo", "full"), ("dpo", "lora"), ("grpo", "lora")]
CASES = [("grpo", "full"), *(pytest.param(*one, marks=pytest.mark.exhaustive) for one in MORE)]


def training_job(job: MakeJob, task_type: str, method: str, name: str, **training: Any) -> Job:
    settings = {"max_steps": STEPS, "learning_rate": 1e-3, "per_device_train_batch_size": 4, "logging_steps": 4}
    settings |= {"save_steps": 8} | (BUFFERED if task_type == "grpo" else {}) | training
    adapter = {"lora": {"r": 4, "dropout": 0.1}} if method == "lora" else {}
    return job(task_type, {"training": settings} | ROWS[task_type] | adapter, name=name)


def killed_at_half(job: Job) -> int:
    """Kill the host when it is past its second checkpoint; returns the step that the next attempt goes on from."""
    assert kill_after(job, STEPS // 2, signal.SIGKILL) == -signal.SIGKILL
    assert not (job.out / "result.json").exists()
    return STEPS // 2


@pytest.mark.slow
@pytest.mark.parametrize(("task_type", "method"), CASES)
def test_kill_nine_at_half_then_the_same_weights(job: MakeJob, task_type: str, method: str) -> None:
    whole, cut = (training_job(job, task_type, method, name) for name in ("whole", "cut"))
    assert run_host(whole)[0] == 0
    half = killed_at_half(cut)
    code, output = run_host(cut)
    assert code == 0, output
    one, other = result_of(whole), result_of(cut)
    assert one["payload"]["resume_from_path"] is None
    assert int(Path(other["payload"]["resume_from_path"]).name.split("-")[1]) >= half
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-6, abs=1e-9)
    assert other["metadata"]["weights_digest"] == one["metadata"]["weights_digest"]
    assert one["metadata"]["weights_changed"]


def test_samples_that_are_not_learned_from_yet_are_in_the_checkpoint(job: MakeJob) -> None:
    """Without them the resumed run would sample anew in the middle of a batch, and end with other weights."""
    whole = training_job(job, "grpo", "full", "whole")
    assert run_host(whole)[0] == 0
    digests = []
    for name, keeps in (("with", True), ("without", False)):
        again = training_job(job, "grpo", "full", name)
        checkpoint = again.out / "checkpoints" / "checkpoint-8"
        shutil.copytree(whole.out / "checkpoints" / "checkpoint-8", checkpoint)
        if not keeps:
            (checkpoint / "sampled_0.pt").unlink()
            marker = json.loads((checkpoint / MARKER).read_text())
            del marker["sizes"]["sampled_0.pt"]
            (checkpoint / MARKER).write_text(json.dumps(marker))
        assert run_host(again)[0] == 0
        assert result_of(again)["payload"]["resume_from_path"] == str(checkpoint)
        digests.append(result_of(again)["metadata"]["weights_digest"])
    wanted = result_of(whole)["metadata"]["weights_digest"]
    assert digests[0] == wanted != digests[1]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_adalora_goes_on_with_its_budget(job: MakeJob) -> None:
    def adalora(name: str) -> Job:
        one = training_job(job, "dpo", "full", name)
        adapter = {"adapter": {"type": "adalora", "r": 4, "lora_dropout": 0.1}}
        return one.model_copy(update={"raw": one.raw | {"model": one.raw["model"] | adapter}})

    whole, cut = adalora("whole"), adalora("cut")
    assert run_host(whole)[0] == 0
    killed_at_half(cut)
    assert run_host(cut)[0] == 0
    assert result_of(cut)["payload"]["resume_from_path"]
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-6, abs=1e-9)
    assert result_of(cut)["metadata"]["weights_digest"] == result_of(whole)["metadata"]["weights_digest"]
