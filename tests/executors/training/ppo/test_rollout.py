"""Sampling and padding: what was generated is what is learned, whatever stands beside it in the batch."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from executors.tiny_llama import EOS, PAD, make_tiny_llama
from executors.training.ppo.actor_critic import ActorCritic, Reference
from executors.training.ppo.rollout import Abandoned, Answers, Sampler, batch_of, rows_of_step
from mloc_dagster.spec.training import Generation

PROMPTS = ["copy: tree ->", "copy: a ->", "hello"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model that has learned a little, and its tokenizer."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    folder = make_tiny_llama(tmp_path_factory.mktemp("rollout") / "tiny", steps=60)
    return LlamaForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def answers_of(model: tuple[Any, Any], halt: threading.Event | None = None, **generation: Any) -> Answers:
    policy, tokenizer = model
    settings = Generation.model_validate({"max_new_tokens": 12} | generation)
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    torch.manual_seed(1)
    return Sampler(tokenizer, settings, [EOS], halt or threading.Event())(policy, [4, 5, 6], ids, CPU)


def test_every_row_comes_once_an_epoch_in_an_order_that_the_seed_gives() -> None:
    steps = [rows_of_step(step, 4, 10, seed=1) for step in range(5)]
    flat = [row for step in steps for row in step]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:] and flat[:10] != list(range(10))
    assert flat[:10] != [row for step in range(5) for row in rows_of_step(step, 4, 10, seed=2)][:10]
    assert sorted(rows_of_step(0, 5, 2, seed=1)) in ([0, 0, 0, 1, 1], [0, 0, 1, 1, 1])


def test_an_answer_ends_with_its_end_token_and_its_text_before_it(model: tuple[Any, Any]) -> None:
    answers = answers_of(model)
    assert answers.rows == [4, 5, 6]
    assert any(answers.ended)
    for tokens, ended, text in zip(answers.tokens, answers.ended, answers.texts, strict=True):
        assert ended == (tokens[-1] == EOS) and EOS not in tokens[:-1]
        assert ended or len(tokens) == 12
        assert text == model[1].decode(tokens, skip_special_tokens=True)


def test_a_stop_text_ends_the_answer_and_is_not_part_of_its_text(model: tuple[Any, Any]) -> None:
    plain = answers_of(model, do_sample=False)
    stop = plain.texts[0][2:4]
    answers = answers_of(model, do_sample=False, stop=stop)
    assert answers.texts[0] == plain.texts[0][:2]
    assert answers.tokens[0] == plain.tokens[0][:4] and answers.ended[0]


def test_padding_that_equals_the_end_token_is_not_learned(model: tuple[Any, Any]) -> None:
    policy, tokenizer = model
    stop = answers_of(model, do_sample=False).texts[0][2:4]
    tokenizer.pad_token = tokenizer.eos_token
    try:
        answers = answers_of((policy, tokenizer), do_sample=False, stop=stop)
    finally:
        tokenizer.pad_token = "<pad>"
    assert len(answers.tokens[0]) == 4 and EOS not in answers.tokens[0]
    mask = batch_of(answers, [0, 2], EOS, CPU).answer_mask
    assert mask.sum(dim=1).tolist() == [4, len(answers.tokens[2])]


@pytest.mark.parametrize(
    ("generation", "same"),
    [
        ({"do_sample": False}, True),
        ({"temperature": 0}, True),
        ({"top_k": 1}, True),
        ({"top_p": 0.01}, True),
        ({}, False),
    ],
)
def test_what_narrows_sampling_to_the_likeliest_token(model: tuple[Any, Any], generation: Any, same: bool) -> None:
    greedy = answers_of(model, do_sample=False)
    assert (answers_of(model, **generation).tokens == greedy.tokens) == same


def test_sampling_is_abandoned_on_request(model: tuple[Any, Any]) -> None:
    halt = threading.Event()
    halt.set()
    with pytest.raises(Abandoned):
        answers_of(model, halt)


def test_logits_and_values_do_not_depend_on_padding(model: tuple[Any, Any]) -> None:
    critic, answers = ActorCritic(model[0]), answers_of(model)
    together = evaluated(critic, answers, [0, 1, 2])
    for one in range(3):
        alone = evaluated(critic, answers, [one])
        length = len(answers.tokens[one])
        for part, whole in zip(alone, together, strict=True):
            torch.testing.assert_close(part[0], whole[one, :length], rtol=1e-4, atol=1e-4)


def test_logits_are_those_of_the_plain_model_one_token_before(model: tuple[Any, Any]) -> None:
    policy, answers = model[0], answers_of(model)
    ids = torch.tensor([answers.prompts[1] + answers.tokens[1]])
    expected = policy(ids).logits[0, len(answers.prompts[1]) - 1 : -1]
    torch.testing.assert_close(evaluated(ActorCritic(policy), answers, [1])[0][0], expected, rtol=1e-4, atol=1e-4)


def evaluated(critic: ActorCritic, answers: Answers, chosen: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    batch = batch_of(answers, chosen, PAD, CPU)
    with torch.no_grad():
        return critic(batch.input_ids, batch.attention_mask, batch.answer_ids.shape[1])


def test_the_reference_is_the_start_and_leaves_the_policy_alone(model: tuple[Any, Any], tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    start = layer(torch.ones(3)).tolist()
    reference = Reference(layer)
    with torch.no_grad():
        layer.weight += 1.0
    moved = layer(torch.ones(3)).tolist()
    with reference.in_place():
        assert layer(torch.ones(3)).tolist() == start
    assert layer(torch.ones(3)).tolist() == moved != start
    with pytest.raises(RuntimeError, match="inside"), reference.in_place():
        raise RuntimeError("inside")
    assert layer(torch.ones(3)).tolist() == moved
