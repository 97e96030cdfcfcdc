"""DPO makes a real tiny model answer in the preferred style."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from executors.base import ExecutorError
from executors.host import execute
from tests.executors.conftest import MakeJob
from tests.executors.training.styles import pairs, wanted_share, words

PAIRS = [{"prompt": f"n{i}", "chosen": str(i * 7), "rejected": str(i * 3)} for i in range(1, 9)]
SHORT = {"max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-3}


def short(**spec: Any) -> dict[str, Any]:
    return {"data": {"preferences": PAIRS}, "training": SHORT | spec.pop("training", {})} | spec


@pytest.mark.learning
@pytest.mark.slow
def test_preferred_style_is_generated(job: MakeJob, two_styles: Path) -> None:
    held_out = words(30, seed=2)
    assert 0.3 < wanted_share(two_styles, held_out) < 0.6
    for seed in (1, 2, 3):
        training = {"max_steps": 30, "per_device_train_batch_size": 8, "learning_rate": 5e-5, "seed": seed}
        spec = {"data": {"preferences": pairs(128, seed=1), "separator": ""}, "training": training}
        payload = execute(job("dpo", spec, name=f"dpo{seed}", model=two_styles)).payload
        assert wanted_share(Path(payload["final_model_path"]), held_out) >= 0.8, seed
        assert payload["metrics"]["rewards/accuracies"] == 1


@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_beta_scales_the_distance_from_the_reference(job: MakeJob, lora: dict[str, Any] | None) -> None:
    """Rewards are beta times the change of log probability against the reference, which is 0 in the first step."""
    found = {}
    for beta in (0.1, 1.0):
        spec = short(training={"beta": beta, "learning_rate": 1e-4, "max_steps": 3}) | ({"lora": lora} if lora else {})
        found[beta] = execute(job("dpo", spec, name=f"beta{beta}")).payload["log_history"]
    for history in found.values():
        assert history[0]["rewards/margins"] == 0 and history[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert found[1.0][1]["rewards/margins"] == pytest.approx(10 * found[0.1][1]["rewards/margins"], rel=0.1)


def test_an_adapter_is_trained_on_against_itself(job: MakeJob) -> None:
    lora = {"r": 4, "dropout": 0.0}
    first = execute(job("dpo", short(lora=lora, training={"max_steps": 20}), name="first")).payload
    assert first["log_history"][-2]["rewards/margins"] > 0.1
    load = {"checkpoint": {"load": {"path": first["final_lora_path"]}}}
    second = execute(job("dpo", short(lora=lora, **load), name="second")).payload
    assert second["log_history"][0]["rewards/margins"] == 0
    names = {path.name for path in Path(second["final_lora_path"]).iterdir()}
    assert "adapter_model.safetensors" in names and "ref" not in names


def test_full_training_from_an_adapter_keeps_its_weights_as_reference(job: MakeJob) -> None:
    first = execute(job("dpo", short(lora={"r": 4}, training={"max_steps": 20}), name="first")).payload
    load = {"checkpoint": {"load": {"path": first["final_lora_path"]}}}
    second = execute(job("dpo", short(**load), name="second")).payload
    assert second["log_history"][0]["rewards/margins"] == 0
    assert (Path(second["final_model_path"]) / "model.safetensors").exists()


def test_chat_model_gets_turns(job: MakeJob, tiny_chat: Path) -> None:
    payload = execute(job("dpo", short(), model=tiny_chat)).payload
    assert payload["dataset_size"] == 8 and payload["training_successful"]


def test_adapter_leaves_the_base_alone(job: MakeJob, tiny: Path) -> None:
    before = load_file(tiny / "model.safetensors")
    payload = execute(job("dpo", short(lora={"r": 4}))).payload
    config = json.loads((Path(payload["final_lora_path"]) / "adapter_config.json").read_text())
    assert config["r"] == 4 and "final_model_path" not in payload
    assert all((before[name] == part).all() for name, part in load_file(tiny / "model.safetensors").items())


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ({"data": {"prompts": [{"prompt": "a", "response": "b"}]}}, "chosen_column is 'chosen'"),
        ({"training": {"loss_type": ["zigzag"]}}, "zigzag"),
        ({"training": {"f_divergence_type": "js_divergence", "loss_type": ["apo_zero"]}}, "TRL refuses the settings"),
        ({"lora": {"target_modules": ["lm_head"]}}, "lm_head"),
    ],
)
def test_faults(job: MakeJob, spec: dict[str, Any], fault: str) -> None:
    with pytest.raises(ExecutorError, match=fault):
        execute(job("dpo", short(**spec)))
