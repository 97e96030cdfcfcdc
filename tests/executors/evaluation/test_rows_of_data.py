"""Perplexity, win rate and rewards of a model on rows of data, against the same worked out with plain torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from executors.base import ExecutorError, Result
from executors.host import execute
from executors.weights import digest
from tests.executors.conftest import MakeJob

PAIRS = [{"prompt": "ab", "response": "cd"}, {"prompt": "copy: sea", "response": "SEA and sky"}]
PREFERENCES = [
    {"prompt": "ab", "chosen": "cdef", "rejected": "zz"},
    {"prompt": "x", "chosen": "yy", "rejected": "wwww"},
    {"prompt": "same", "chosen": "a", "rejected": "a"},
]


def score(job: MakeJob, metrics: list[str], data: dict[str, Any], **spec: Any) -> Result:
    return execute(job("evaluation", {"evaluation": {"metrics": metrics}, "data": data, **spec}))


def log_probability(folder: Path, prompt: str, answer: str) -> tuple[float, int]:
    """Log-probability (nats) and number of the answer's tokens, one row at a time, without padding."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(prompt + answer, return_tensors="pt").input_ids
    with torch.no_grad():
        told = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    start = max(1, len(tokenizer(prompt).input_ids))
    return float(told[start - 1 :].sum()), len(told) - start + 1


def test_perplexity_of_answers_counts_the_answers_tokens(job: MakeJob, tiny: Path) -> None:
    result = score(job, ["perplexity"], {"prompts": PAIRS, "separator": "|"})
    told = [log_probability(tiny, row["prompt"], f"|{row['response']}") for row in PAIRS]
    expected = math.exp(-sum(value for value, _ in told) / sum(count for _, count in told))
    assert result.metrics["perplexity"] == pytest.approx(expected, rel=1e-4)
    rows = result.payload["rows"]
    assert [row["tokens"] for row in rows] == [count for _, count in told] == [3, 12]
    assert rows[0]["nll"] == pytest.approx(-told[0][0] / 3, rel=1e-4)
    assert result.metadata["weights"] == [digest(tiny)] == [result.metadata["weights_digest"]]


def test_perplexity_of_whole_texts(job: MakeJob, tiny: Path) -> None:
    result = score(job, ["perplexity"], {"prompts": ["abcdef", "xy"]})
    told = [log_probability(tiny, "", text) for text in ("abcdef", "xy")]
    assert result.metrics["perplexity"] == pytest.approx(math.exp(-(told[0][0] + told[1][0]) / 6), rel=1e-4)


def test_what_could_not_be_as_asked_is_told(job: MakeJob) -> None:
    model = {"source": {"identifier": "tiny"}, "transformers": {"use_flash_attention_2": True}}
    warnings = score(job, ["perplexity"], {"prompts": ["abcdef"]}, model=model).metadata["warnings"]
    assert warnings == ["flash_attention_2 needs a GPU; the default attention was used on the CPU"]


def test_conversations_need_and_use_the_chat_template(job: MakeJob, tiny_chat: Path) -> None:
    turns = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]
    data = {"prompts": [{"messages": turns}, {"messages": turns}]}
    spec = {"evaluation": {"metrics": ["perplexity"]}, "data": data}
    whole = execute(job("evaluation", spec, model=tiny_chat))
    assert whole.payload["rows"][0]["tokens"] == len("u:ab\na:cd") + 1 - 1  # with the end mark, without the first
    pair = execute(job("evaluation", {**spec, "data": {"prompts": PAIRS}}, model=tiny_chat))
    assert pair.payload["rows"][0]["tokens"] == len("cd") + 1
    with pytest.raises(ExecutorError, match="Row 0 is a conversation, but the model has no chat template"):
        score(job, ["perplexity"], data)


def test_win_rate_is_the_share_of_pairs_whose_chosen_answer_is_likelier(job: MakeJob, tiny: Path) -> None:
    result = score(job, ["win_rate"], {"preferences": PREFERENCES, "separator": " "})
    sides = [
        [log_probability(tiny, row["prompt"], f" {row[side]}")[0] for row in PREFERENCES]
        for side in ("chosen", "rejected")
    ]
    wins = [0.5 if one == other else float(one > other) for one, other in zip(*sides, strict=True)]
    assert [row["win"] for row in result.payload["rows"]] == wins and wins[2] == 0.5
    assert result.metrics["win_rate"] == pytest.approx(sum(wins) / 3)
    assert result.payload["rows"][0]["chosen_logp"] == pytest.approx(sides[0][0], rel=1e-4)


def test_a_trained_models_perplexity_is_lower(job: MakeJob, tiny: Path) -> None:
    """The same rows, before and after an adapter has learned them."""
    data = {"prompts": PAIRS * 4, "separator": " "}
    training = {"max_steps": 40, "learning_rate": 1e-2, "per_device_train_batch_size": 8}
    tuned = execute(job("lora_sft", {"data": data, "training": training, "lora": {"r": 8}}, name="tuned"))
    adapter = {"adapters": [{"path": tuned.payload["final_lora_path"], "apply": "runtime"}]}
    before = score(job, ["perplexity"], data)
    after = score(job, ["perplexity"], data, model=adapter)
    assert after.metrics["perplexity"] < before.metrics["perplexity"] / 3
    assert after.metadata["rows_digest"] == before.metadata["rows_digest"]
    assert after.metadata["weights"] == [digest(tiny), tuned.metadata["weights_digest"]]
    half = {"adapters": [{**adapter["adapters"][0], "scale": 0.5}]}
    scaled = score(job, ["perplexity"], data, model=half)
    assert scaled.metadata["weights"] == [digest(tiny), f"{tuned.metadata['weights_digest']}*0.5"]


@pytest.fixture(scope="module")
def reward_model(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with one output and random weights."""
    folder = tmp_path_factory.mktemp("reward") / "model"
    torch.manual_seed(1)
    config = LlamaConfig.from_pretrained(tiny, num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def test_a_reward_model_scores_pairs_and_is_what_is_judged(job: MakeJob, tiny: Path, reward_model: Path) -> None:
    given = {"type": "regression", "identifier": str(reward_model)}
    data = {"preferences": PREFERENCES, "separator": " "}
    result = score(job, ["win_rate", "reward", "perplexity"], data, reward_model=given)
    tokenizer = AutoTokenizer.from_pretrained(reward_model)
    model = LlamaForSequenceClassification.from_pretrained(reward_model).eval()
    with torch.no_grad():
        sides = [
            [
                float(model(**tokenizer(f"{row['prompt']} {row[side]}</s>", return_tensors="pt")).logits)
                for row in PREFERENCES
            ]
            for side in ("chosen", "rejected")
        ]
    rows = result.payload["rows"]
    assert [row["chosen_reward"] for row in rows] == pytest.approx(sides[0], abs=1e-4)
    assert [row["rejected_reward"] for row in rows] == pytest.approx(sides[1], abs=1e-4)
    assert result.metrics["reward"] == pytest.approx(sum(sides[0]) / 3, abs=1e-4)
    assert rows[2]["win"] == 0.5
    assert result.metadata["weights"] == [digest(reward_model)]
    assert result.metadata["weights_digest"] == digest(tiny)


@pytest.mark.parametrize(
    ("metrics", "data", "fault"),
    [
        (["perplexity"], {"prompts": ["abc", "x" * 300]}, "Row 1 has 300 tokens; the model's context holds 256"),
        (["perplexity"], {"prompts": ["a"]}, "Row 0 has 1 tokens, of which none can be scored"),
        (["perplexity"], {"prompts": [{"prompt": "a", "response": ""}]}, "row 0: 'response' is empty"),
        (["win_rate"], {"prompts": PAIRS}, "chosen"),
        (["perplexity"], {"prompts": ["ab"], "max_samples": 0}, "is empty: 0 rows"),
    ],
)
def test_faults(job: MakeJob, metrics: list[str], data: dict[str, Any], fault: str) -> None:
    with pytest.raises(ExecutorError, match=fault):
        score(job, metrics, data)


def test_a_checkpoint_that_is_not_there_fails_the_stage(job: MakeJob) -> None:
    with pytest.raises(ExecutorError, match=r"checkpoint\.load"):
        score(job, ["perplexity"], {"prompts": ["ab"]}, checkpoint={"load": {"path": "/nowhere"}})
