"""PPO teaches a real tiny model one of its two styles; what it leaves is a plain model; each key does what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from executors.base import ExecutorError, Result
from executors.host import execute
from executors.weights import digest
from tests.executors.conftest import MakeJob
from tests.executors.training.ppo.conftest import PpoJob, Row, rows

LEARN = {
    "max_steps": 24, "per_device_train_batch_size": 64, "num_mini_batches": 4, "ppo_epochs": 2, "learning_rate": 4e-4,
    "logging_steps": 4, "save_strategy": "no",
}  # fmt: skip
SHORT = {"max_steps": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "save_strategy": "no"}
HELD_OUT = rows(60, seed=9)
PAYLOAD_KEYS = ("reward", "kl", "entropy", "loss/policy", "loss/value", "clip_fraction", "approx_kl", "reward_std")


def preferred(job: MakeJob, model: Path, **spec: Any) -> float:
    """Share of sampled answers in the preferred style to prompts that no training had."""
    sampling = {"max_tokens": 10, "temperature": 1.0, "top_p": 1.0, "seed": 5}
    asked: list[Row] = [{"prompt": row["prompt"]} for row in HELD_OUT]
    one = job("inference", {"data": {"items": asked}, "inference": sampling} | spec, name="infer", model=model)
    items = execute(one).payload["items"]
    return sum(item["output"].strip() == row["answer"] for item, row in zip(items, HELD_OUT, strict=True)) / len(items)


def lines(result: Result) -> list[dict[str, float]]:
    return [line for line in result.payload["log_history"] if "loss" in line]


@pytest.mark.learning
@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in (2, 3))])
def test_learns_the_style_that_is_rewarded(job: MakeJob, ppo_job: PpoJob, two_styles: Path, seed: int) -> None:
    result = execute(ppo_job(seed=seed, **LEARN))
    final = Path(result.payload["final_model_path"])
    assert 0.2 < preferred(job, two_styles) < 0.6
    assert preferred(job, final) >= 0.75
    assert max(line["kl"] for line in lines(result)[1:]) < 4.0
    assert result.payload["metrics"]["reward"] > 0.75
    assert result.metadata["weights_changed"] and result.metadata["weights_digest"] == digest(final)


@pytest.mark.learning
@pytest.mark.slow
def test_learns_with_an_adapter(job: MakeJob, ppo_job: PpoJob, two_styles: Path) -> None:
    lora = {"r": 16, "alpha": 32}
    result = execute(ppo_job(lora=lora, seed=1, **LEARN | {"learning_rate": 4e-3, "max_steps": 28}))
    adapter = result.payload["final_lora_path"]
    assert preferred(job, two_styles, checkpoint={"load": {"path": adapter}}) >= 0.75
    assert not list(Path(adapter).glob("model*.safetensors"))
    assert lines(result)[-1]["kl"] < 4.0


def test_the_result_is_a_plain_model_and_the_log_is_complete(ppo_job: PpoJob) -> None:
    one = ppo_job(**SHORT | {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1})
    result = execute(one)
    with safe_open(one.out / "final_model" / "model.safetensors", "pt") as weights:
        assert not [name for name in weights.keys() if "value" in name]  # noqa: SIM118 (no mapping)
    assert not list((one.out / "final_model").glob("*value_head*"))
    (checkpoint,) = (one.out / "checkpoints").glob("checkpoint-*")
    files = {path.name for path in checkpoint.iterdir()}
    assert checkpoint.name == "checkpoint-2"
    assert {"value_head.safetensors", "ppo_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"} < files
    assert [line["step"] for line in lines(result)] == [1, 2]
    assert all(key in line for line in lines(result) for key in (*PAYLOAD_KEYS, "tokens_per_second"))
    assert lines(result)[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert set(result.metrics) >= {"reward", "kl", "train_loss"}
    assert result.payload["metrics"]["steps"] == 2 and result.payload["dataset_size"] == 256


def first_line(ppo_job: PpoJob, name: str, **settings: Any) -> dict[str, float]:
    return lines(execute(ppo_job(name, **{**SHORT, "max_steps": 1, **settings})))[0]


def told(line: dict[str, float]) -> dict[str, float]:
    """What does not depend on the clock."""
    return {key: value for key, value in line.items() if key != "tokens_per_second"}


GREEDY = {"do_sample": False}
_PLAIN: dict[str, float] = {}


def plain_line(ppo_job: PpoJob) -> dict[str, float]:
    """What is logged without further settings; trained once for all tests."""
    if not _PLAIN:
        _PLAIN.update(first_line(ppo_job, "plain"))
    return _PLAIN


@pytest.mark.parametrize(
    "same",
    [
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_mini_batches": 1},
        {"per_device_train_batch_size": 8, "mini_batch_size": 8},
        {"gradient_checkpointing": True},
    ],
)
def test_the_same_update_whatever_fits_the_device(ppo_job: PpoJob, same: dict[str, Any]) -> None:
    whole = first_line(ppo_job, "whole", generation=GREEDY)
    parts = first_line(ppo_job, "parts", generation=GREEDY, **same)
    assert told(parts) == pytest.approx(told(whole), rel=2e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "key", "expected"),
    [
        ({"ppo_epochs": 2, "num_mini_batches": 4}, "updates", 8),
        ({"ppo_epochs": 3, "mini_batch_size": 4}, "updates", 6),
        ({"target_kl": 1e-9, "ppo_epochs": 5}, "updates", 1),
        ({"target_kl": 1e-9, "ppo_epochs": 5}, "stopped_early", 1),
        ({"target_kl": 1e-9, "ppo_epochs": 5, "early_stopping": False}, "updates", 5),
        ({"target_kl": 1e9, "ppo_epochs": 5}, "updates", 5),
        ({"kl_coef": 0.7}, "kl_coef", 0.7),
    ],
)
def test_what_a_step_does(ppo_job: PpoJob, settings: dict[str, Any], key: str, expected: float) -> None:
    assert first_line(ppo_job, "one", **settings)[key] == expected


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"cliprange": 1e-4}, "clip_fraction"),
        ({"cliprange_value": 1e-4}, "value_clip_fraction"),
        ({"vf_coef": 0.9}, "loss"),
        ({"gamma": 0.5}, "loss/value"),
        ({"lam": 0.1}, "loss/value"),
        ({"whiten_rewards": True}, "loss/value"),
        ({"max_grad_norm": 1e-6}, "approx_kl"),
        ({"learning_rate": 1e-5}, "approx_kl"),
        ({"seed": 7}, "reward"),
        ({"generation": {"temperature": 3.0}}, "entropy"),
        ({"generation": {"max_new_tokens": 2}}, "ended"),
        ({"generation": {"stop": "o"}}, "answer_tokens"),
        ({"generation": {"top_p": 0.1}}, "reward"),
    ],
)
def test_each_key_changes_what_it_says(ppo_job: PpoJob, settings: dict[str, Any], key: str) -> None:
    assert plain_line(ppo_job)[key] != pytest.approx(first_line(ppo_job, "other", **settings)[key], rel=1e-3)


def test_an_answer_that_was_cut_is_penalised(ppo_job: PpoJob) -> None:
    short = {"generation": {"do_sample": False, "max_new_tokens": 3}}
    without, with_penalty = (
        first_line(ppo_job, f"cut{penalty}", missing_eos_penalty=penalty, **short) for penalty in (0, 5)
    )
    assert without["ended"] == 0
    assert with_penalty["loss/value"] > 4 * without["loss/value"]
    assert with_penalty["reward"] == without["reward"]  # the log tells what the reward function said


def test_an_adaptive_coefficient_falls_while_the_policy_is_near(ppo_job: PpoJob) -> None:
    settings = {"max_steps": 3, "learning_rate": 1e-5, "adap_kl_ctrl": True, "target": 5, "horizon": 100}
    result = execute(ppo_job(**SHORT | settings))
    found, factor = [line["kl_coef"] for line in lines(result)], 1 - 0.2 * 8 / 100
    assert found[0] == 0.05 and found[1:] == pytest.approx([0.05 * factor, 0.05 * factor**2])


def test_a_strong_coefficient_keeps_the_policy_near(ppo_job: PpoJob) -> None:
    settings = {**SHORT, "max_steps": 12, "learning_rate": 1e-3, "logging_steps": 6}
    weak, strong = (lines(execute(ppo_job(f"kl{coef}", kl_coef=coef, **settings)))[-1]["kl"] for coef in (0.0, 20.0))
    assert abs(strong) < 0.5 * abs(weak)


def test_an_adapter_that_is_trained_on_is_its_own_reference(ppo_job: PpoJob) -> None:
    lora, settings = {"r": 4, "alpha": 8}, SHORT | {"max_steps": 3, "learning_rate": 5e-3}
    first = execute(ppo_job("first", lora=lora, **settings))
    again = ppo_job("again", lora=lora, **settings)
    again.raw["checkpoint"] = {"load": {"path": first.payload["final_lora_path"]}}
    assert abs(lines(first)[-1]["kl"]) > 0.01
    assert lines(execute(again))[0]["kl"] == pytest.approx(0, abs=1e-4)


def test_adalora_runs_its_schedule(ppo_job: PpoJob) -> None:
    one = ppo_job(**SHORT | {"max_steps": 12, "ppo_epochs": 2})
    one.raw["model"] |= {"adapter": {"type": "adalora", "r": 2}}
    result = execute(one)
    (weights,) = Path(result.payload["final_lora_path"]).glob("*.safetensors")
    with safe_open(weights, "pt") as tensors:
        ranks = [tensors.get_tensor(name) for name in tensors.keys() if "lora_E" in name]  # noqa: SIM118 (no mapping)
    assert sum(int((rank == 0).sum()) for rank in ranks) >= sum(rank.numel() for rank in ranks) // 4
    assert result.metadata["weights_changed"]


def test_epochs_give_the_steps(ppo_job: PpoJob) -> None:
    settings = {key: value for key, value in SHORT.items() if key != "max_steps"}
    result = execute(ppo_job(prompts=rows(12, seed=1), num_train_epochs=2, **settings))
    assert (result.payload["metrics"]["steps"], result.payload["metrics"]["epoch"]) == (3, 2)


def test_long_prompts_lose_their_beginning_with_a_warning(ppo_job: PpoJob) -> None:
    result = execute(ppo_job(max_seq_length=22, **SHORT))
    assert any("lost their beginning" in warning for warning in result.metadata["warnings"])
    assert not any("lost" in warning for warning in execute(ppo_job("all", **SHORT)).metadata["warnings"])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"target_kl": 0.1, "early_stopping": False}, "target_kl is not used"),
        ({"generation": GREEDY}, "samples nothing"),
        ({"lora": {"dropout": 0.3}}, "lora.dropout 0.3 is not applied"),
    ],
)
def test_what_has_no_effect_is_told(ppo_job: PpoJob, settings: dict[str, Any], told: str) -> None:
    assert any(told in warning for warning in execute(ppo_job(**SHORT | settings)).metadata["warnings"])


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"gama": 0.9}, r"spec.training.gama is no key .*\n.*'gamma'"),
        ({"eval_strategy": "steps"}, "spec.training.eval_strategy is no key"),
        ({"fsdp": "full_shard"}, "PPO does not shard"),
        ({"mini_batch_size": 3}, "spec.training is refused by PPOConfig: mini_batch_size 3 does not divide"),
        ({"max_seq_length": 10}, "no token is left for the prompt"),
        ({"generation": {"max_new_tokens": 8190}}, "The prompt of row 0 has .* more than the model's context of 8192"),
        ({"prompts": [{"prompt": "a", "answer": "b"}, {"prompt": 7, "answer": "b"}]}, r"row 1: 'prompt' is 7 \(int\)"),
        ({"prompts": [{"prompt": "a"}, {"prompt": "b"}]}, "exact_match"),
    ],
)
def test_faults(ppo_job: PpoJob, settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ExecutorError, match=fault):
        execute(ppo_job(**SHORT | settings))


def test_a_chat_model_is_asked_in_its_template(job: MakeJob, tiny_chat: Path) -> None:
    spec = {
        "data": {"prompts": [{"messages": [{"role": "user", "content": "hi"}]}] * 4, "prompt_column": "messages"},
        "reward_model": {"type": "function", "identifier": "length", "max_length": 5},
        "generation": {"max_new_tokens": 6},
        "training": {"per_device_train_batch_size": 4, "max_steps": 2, "logging_steps": 1},
    }
    result = execute(job("ppo", spec, model=tiny_chat))
    assert result.payload["metrics"]["reward"] > 0
