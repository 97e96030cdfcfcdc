"""Fine-tuning teaches a real tiny model; what it leaves can be loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from executors.base import ExecutorError
from executors.host import execute
from executors.weights import digest
from tests.executors.conftest import MakeJob

PAIRS = [
    {"prompt": word, "response": word[::-1].upper()} for word in ("abcd", "hello", "stone", "quick", "river", "plum")
]
FAST = {"max_steps": 60, "learning_rate": 5e-3, "batch_size": 6, "logging_steps": 5, "max_seq_length": 64}
GREEDY = {"max_tokens": 16, "temperature": 0}


def train(spec: dict[str, Any]) -> dict[str, Any]:
    known = {"per_device_train_batch_size": spec.pop("batch_size", 8)}
    return spec | known


def answers(job: MakeJob, **spec: Any) -> list[str]:
    items = execute(job("inference", {"data": {"items": PAIRS}, "inference": GREEDY} | spec, name="infer")).payload[
        "items"
    ]
    return [item["output"].strip() for item in items]


EXPECTED = [pair["response"] for pair in PAIRS]


def test_all_weights(job: MakeJob, tiny: Path) -> None:
    spec = {"data": {"prompts": PAIRS}, "training": train(dict(FAST))}
    one = job("sft", spec, name="sft")
    result = execute(one)
    payload = result.payload
    assert answers(job) != EXPECTED
    assert answers(job, checkpoint={"load": {"path": payload["final_model_path"]}}) == EXPECTED
    losses = [line["loss"] for line in payload["log_history"] if "loss" in line]
    assert losses[-1] < 0.1 * losses[0]
    assert payload["ok"] and payload["training_successful"] and payload["dataset_size"] == 6
    assert payload["error_message"] is None and payload["resume_from_path"] is None
    assert payload["metrics"]["steps"] == 60
    assert result.metadata["weights_changed"]
    assert result.metadata["weights_digest"] == digest(Path(payload["final_model_path"])) != digest(tiny)
    assert not (one.out / ".cache").exists()
    files = {path.name for path in one.out.iterdir()}
    assert files == {"final_model", "checkpoints", "logs"}


def test_lora_can_be_applied_and_merged(job: MakeJob) -> None:
    spec = {"data": {"prompts": PAIRS}, "training": train(FAST | {"max_steps": 120}), "lora": {"r": 16, "dropout": 0.0}}
    payload = execute(job("lora_sft", spec, name="lora")).payload
    assert "final_model_path" not in payload
    for apply in ("runtime", "merge"):
        adapters = [{"path": payload["final_lora_path"], "apply": apply}]
        assert answers(job, model={"adapters": adapters}) == EXPECTED


def test_sft_with_a_lora_adapter_of_the_older_form(job: MakeJob) -> None:
    model = {"adapter": {"type": "lora", "r": 4, "lora_alpha": 8}}
    spec = {"data": {"prompts": PAIRS}, "training": train(FAST | {"max_steps": 2}), "model": model}
    payload = execute(job("sft", spec)).payload
    config = json.loads((Path(payload["final_lora_path"]) / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)


def test_chat_model_learns_the_answer_in_its_template(job: MakeJob, tiny_chat: Path) -> None:
    spec = {"data": {"prompts": PAIRS[:3]}, "training": train(dict(FAST))}
    payload = execute(job("sft", spec, name="sft", model=tiny_chat)).payload
    load = {"checkpoint": {"load": {"path": payload["final_model_path"]}}}
    assert answers(job, **load)[:3] == EXPECTED[:3]


def test_adapter_checkpoint_is_trained_on(job: MakeJob) -> None:
    lora = {"r": 16, "dropout": 0.0}
    first = execute(
        job("lora_sft", {"data": {"prompts": PAIRS}, "training": train(dict(FAST)), "lora": lora}, name="a")
    )
    again = {"checkpoint": {"load": {"path": first.payload["final_lora_path"]}}}
    spec = {"data": {"prompts": PAIRS}, "training": train(FAST | {"max_steps": 5, "logging_steps": 1}), "lora": lora}
    second = execute(job("lora_sft", spec | again, name="b"))
    assert second.payload["log_history"][0]["loss"] == pytest.approx(first.payload["metrics"]["final_loss"], rel=0.01)


def test_no_model_is_saved_when_not_wanted(job: MakeJob) -> None:
    training = train(FAST | {"max_steps": 2, "save_model": False, "save_strategy": "no"})
    one = job("sft", {"data": {"prompts": PAIRS}, "training": training})
    payload = execute(one).payload
    assert "final_model_path" not in payload
    assert not list((one.out / "checkpoints").glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ({"training": {"lerning_rate": 1e-3}}, r"spec.training.lerning_rate is no key"),
        ({"training": {"lr_scheduler_type": "zigzag"}}, "spec.training is refused by SFTConfig"),
        ({"training": {"resume_from_path": "/nope"}}, "resume_from_path '/nope' holds no checkpoint"),
        ({"checkpoint": {"load": {"path": "/nope"}}}, "checkpoint.load cannot be used"),
        ({"data": {"prompts": [{"messages": [{"role": "user", "content": "a"}]}]}}, "no chat template"),
    ],
)
def test_faults(job: MakeJob, spec: dict[str, Any], fault: str) -> None:
    with pytest.raises(ExecutorError, match=fault):
        execute(job("sft", {"data": {"prompts": PAIRS}} | spec))
