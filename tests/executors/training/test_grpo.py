"""GRPO makes a real tiny model earn its reward."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from executors.base import ExecutorError
from executors.host import execute
from tests.executors.conftest import MakeJob
from tests.executors.training.styles import PROMPT, bracket_share, pairs, wanted_share, words

PROMPTS = [f"n{i}" for i in range(8)]
SHORT = {"max_steps": 2, "per_device_train_batch_size": 8, "logging_steps": 1, "learning_rate": 1e-3}
LENGTH = {"type": "function", "identifier": "length"}


def short(**spec: Any) -> dict[str, Any]:
    base = {"data": {"prompts": PROMPTS}, "generation": {"max_new_tokens": 6}, "reward_model": LENGTH}
    return base | {"training": SHORT | spec.pop("training", {})} | spec


@pytest.mark.learning
@pytest.mark.slow
def test_rewarded_style_is_generated(job: MakeJob, two_styles: Path) -> None:
    held_out = words(30, seed=2)
    assert 0.3 < wanted_share(two_styles, held_out) < 0.6
    rows = [{"prompt": row["prompt"], "reference": row["chosen"]} for row in pairs(64, seed=1)]
    for seed in (1, 2, 3):
        training = {"max_steps": 30, "per_device_train_batch_size": 32, "learning_rate": 2e-4, "seed": seed}
        spec = {"data": {"prompts": rows}, "training": training, "generation": {"max_new_tokens": 10}}
        spec["reward_model"] = {"type": "function", "identifier": "exact_match"}
        payload = execute(job("grpo", spec, name=f"grpo{seed}", model=two_styles)).payload
        assert wanted_share(Path(payload["final_model_path"]), held_out) >= 0.75, seed


@pytest.mark.slow
def test_reward_model_of_an_earlier_stage(job: MakeJob, two_styles: Path, tmp_path: Path) -> None:
    rows = pairs(64, seed=1)
    training = {"max_steps": 20, "per_device_train_batch_size": 8, "learning_rate": 3e-4}
    judge = job("reward", {"data": {"preferences": rows, "separator": ""}, "training": training}, name="judge",
                model=two_styles)  # fmt: skip
    envelope = {"task_id": "t", "stage": "judge", "worker": "w", "metadata": {}, "result": execute(judge).payload}
    (tmp_path / "judge.json").write_text(json.dumps(envelope))
    spec = {
        "data": {"prompts": [row["prompt"] for row in rows]},
        "training": {"max_steps": 15, "per_device_train_batch_size": 32, "learning_rate": 2e-4},
        "generation": {"max_new_tokens": 10},
        "reward_model": {"type": "regression", "identifier": "${judge.result.final_model_path}"},
    }
    one = job("grpo", spec, name="grpo", model=two_styles, upstream={"judge": tmp_path / "judge.json"})
    history = execute(one).payload["log_history"]
    assert history[-2]["reward"] > history[0]["reward"]
    held_out = words(30, seed=2)
    assert bracket_share(one.out / "final_model", held_out) > bracket_share(two_styles, held_out) + 0.2


def test_generation_keys_reach_the_trainer(job: MakeJob) -> None:
    lengths = {}
    for most in (3, 6):
        payload = execute(job("grpo", short(generation={"max_new_tokens": most}), name=f"most{most}")).payload
        lengths[most] = payload["metrics"]["completions/mean_length"]
    assert lengths[3] <= 3 < lengths[6] <= 6
    sharp = execute(job("grpo", short(generation={"max_new_tokens": 6, "temperature": 1.0, "top_k": 1}), name="top"))
    assert sharp.payload["log_history"][0]["reward_std"] == 0


def test_beta_brings_the_reference(job: MakeJob) -> None:
    assert "kl" not in execute(job("grpo", short(), name="none")).payload["metrics"]
    history = execute(job("grpo", short(training={"beta": 0.5, "max_steps": 3}), name="beta")).payload["log_history"]
    assert history[0]["kl"] == pytest.approx(0, abs=1e-6) and history[2]["kl"] > 0


def test_full_training_from_an_adapter_keeps_its_weights_as_reference(job: MakeJob) -> None:
    first = execute(job("grpo", short(lora={"r": 4}, training={"max_steps": 4}), name="first")).payload
    load = {"checkpoint": {"load": {"path": first["final_lora_path"]}}}
    second = execute(job("grpo", short(training={"beta": 0.1}, **load), name="second")).payload
    assert second["log_history"][0]["kl"] == pytest.approx(0, abs=1e-6) and second["weights_changed"]


def test_what_trl_cannot_do_is_told(job: MakeJob) -> None:
    generation = {"max_new_tokens": 4, "stop": ["\n"], "do_sample": False}
    warnings = execute(job("grpo", short(generation=generation))).metadata["warnings"]
    assert [text.split(" is not used")[0] for text in warnings] == ["generation.do_sample false", "generation.stop"]


def test_chat_prompts_and_columns_reach_the_reward(job: MakeJob, tiny_chat: Path, offered: list[Any]) -> None:
    rows = [{"prompt": [{"role": "user", "content": f"n{i}"}], "weight": {"of": [i]}} for i in range(4)]
    spec = short(data={"prompts": rows}, reward_model={"type": "function", "identifier": "by_weight", "scale": 3})
    history = execute(job("grpo", spec, model=tiny_chat)).payload["log_history"]
    prompts, completions, seen = offered[0]
    assert all(isinstance(text, str) for text in (*prompts, *completions))
    assert {prompt: row["weight"]["of"][0] for prompt, row in zip(prompts, seen, strict=True)}.items() <= {
        f"n{i}": i for i in range(4)
    }.items()
    assert history[0]["reward"] == pytest.approx(3 * sum(row["weight"]["of"][0] for row in seen) / len(seen))


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """An installed package that offers reward functions; returns the calls of `by_weight`."""
    (tmp_path / "mloc_test_rewards.py").write_text(
        "calls = []\n"
        "def by_weight(prompts, completions, rows):\n"
        "    calls.append((prompts, completions, rows))\n"
        "    return [float(row['weight']['of'][0]) for row in rows]\n"
        "def not_a_number(prompts, completions, rows):\n"
        "    return [float('nan')] * len(rows)\n"
        "def too_few(prompts, completions, rows):\n"
        "    return [1.0]\n"
        "def broken(prompts, completions, rows):\n"
        "    return rows[0]['no such column']\n"
    )
    info = tmp_path / "mloc_test_rewards-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mloc-test-rewards\nVersion: 1\n")
    names = ("by_weight", "not_a_number", "too_few", "broken")
    points = "\n".join(f"{name} = mloc_test_rewards:{name}" for name in names)
    (info / "entry_points.txt").write_text(f"[mloc.rewards]\n{points}\nlost = mloc_test_rewards:lost\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "mloc_test_rewards", raising=False)
    import mloc_test_rewards  # pyright: ignore[reportMissingImports]

    return mloc_test_rewards.calls


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("not_a_number", "'not_a_number' returned nan for the completion"),
        ("too_few", "returned 1 rewards for 8 completions"),
        ("broken", r"'broken' failed: KeyError: 'no such column'"),
        ("lost", "'lost' .* cannot be loaded"),
        ("by_wait", "no reward function. Did you mean 'by_weight'"),
    ],
)
def test_faults_of_reward_functions(job: MakeJob, offered: Sequence[Any], name: str, fault: str) -> None:
    with pytest.raises(ExecutorError, match=fault):
        execute(job("grpo", short(reward_model={"type": "function", "identifier": name})))


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ({"reward_model": None}, "reward_model is missing"),
        ({"reward_model": {"type": "function"}}, "identifier names none"),
        ({"reward_model": {"identifier": "/nowhere"}}, "/nowhere holds no model"),
        ({"reward_model": {"type": "function", "identifier": "exact_match"}}, "needs a reference in each row"),
        ({"generation": {"temperature": 0}}, "temperature is 0"),
        ({"generation": {"max_new_tokens": 4}, "training": {"max_completion_length": 9}}, "max_completion_length is 9"),
        ({"training": {"per_device_train_batch_size": 3}}, "must be divisible by num_generations"),
        ({"training": {"remove_unused_columns": True}}, "remove_unused_columns"),
    ],
)
def test_faults(job: MakeJob, spec: dict[str, Any], fault: str) -> None:
    with pytest.raises(ExecutorError, match=fault):
        execute(job("grpo", short(**spec)))


def test_bad_reference_is_told_before_weights_are_loaded(job: MakeJob, tmp_path: Path) -> None:
    rows = [{"prompt": PROMPT.format(word="a"), "reference": "a"} for _ in range(17)]
    rows.append({"prompt": "b", "reference": float("nan")})  # type: ignore[dict-item]
    empty = tmp_path / "model"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    spec = short(data={"prompts": rows}, reward_model={"type": "function", "identifier": "exact_match"})
    with pytest.raises(ExecutorError, match=r"row 17: 'reference' is nan \(float\)"):
        execute(job("grpo", spec))
