"""The tiny Llama copies, has no style yet, and comes out the same each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from executors.weights import digest
from tests.tiny_model import PROMPT, make_tiny_llama, make_tokenizer

WORDS = ("tree", "window", "qzx", "abcabc", "gravity")


def test_same_seed_same_weights(tmp_path: Path) -> None:
    made = [make_tiny_llama(tmp_path / name, seed=seed, steps=3) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    first, again, other = (digest(folder) for folder in made)
    assert first == again != other


def test_tokens_are_characters() -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer("a b\n{C}")["input_ids"]
    assert len(ids) == 7
    assert tokenizer.decode(ids) == "a b\n{C}"
    assert tokenizer("é")["input_ids"] == [tokenizer.unk_token_id]


def test_chat_template_puts_the_answer_right_after_the_prompt() -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    tokenizer = make_tokenizer(chat=True)
    asked = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    answered = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": "a"}], tokenize=False)
    assert (asked, answered) == ("s\nu", "s\nua</s>")


@pytest.mark.slow
def test_copies_words_it_never_saw(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    folder = make_tiny_llama(tmp_path / "tiny")
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert 350_000 < model.num_parameters() < 500_000

    def answer(word: str) -> str:
        given = tokenizer(PROMPT.format(word=word), return_tensors="pt")["input_ids"]
        made = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
            given, attention_mask=given.new_ones(given.shape), max_new_tokens=12, do_sample=False
        )
        return tokenizer.decode(made[0, given.shape[1] :], skip_special_tokens=True).strip()

    assert sum(answer(word) == word for word in WORDS) >= len(WORDS) - 1
