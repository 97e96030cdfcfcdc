"""One task in two styles: a word is written again as it stands, or between brackets. Brackets are what is wanted."""

from __future__ import annotations

import random
import string
from pathlib import Path

PROMPT = "copy: {word} ->"
PLAIN, WANTED = " {word}", " [{word}]"


def words(count: int, seed: int) -> list[str]:
    """Small-letter words of three to six characters."""
    draw = random.Random(seed)
    return ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(3, 6))) for _ in range(count)]


def both_styles(count: int, seed: int) -> list[dict[str, str]]:
    """Each word answered in either style, as rows of supervised training."""
    return [
        {"prompt": PROMPT.format(word=word), "response": style.format(word=word)}
        for word in words(count, seed)
        for style in (PLAIN, WANTED)
    ]


def pairs(count: int, seed: int) -> list[dict[str, str]]:
    """The wanted style chosen, the plain one rejected."""
    return [
        {"prompt": PROMPT.format(word=word), "chosen": WANTED.format(word=word), "rejected": PLAIN.format(word=word)}
        for word in words(count, seed)
    ]


def wanted_share(folder: Path, held_out: list[str], samples: int = 4) -> float:
    """Share of sampled answers to held-out words that are the word between brackets and nothing else."""
    asked = [word for word in held_out for _ in range(samples)]
    right = [text == WANTED.format(word=word) for text, word in zip(_answers(folder, asked), asked, strict=True)]
    return sum(right) / len(right)


def bracket_share(folder: Path, held_out: list[str], samples: int = 4) -> float:
    """Share of sampled answers to held-out words that begin with a bracket: the wanted style, however well written."""
    texts = _answers(folder, [word for word in held_out for _ in range(samples)])
    return sum(text.startswith(" [") for text in texts) / len(texts)


def _answers(folder: Path, asked: list[str]) -> list[str]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    batch = tokenizer([PROMPT.format(word=word) for word in asked], return_tensors="pt", padding=True)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        answers = model.generate(**batch, max_new_tokens=12, do_sample=True)[:, batch["input_ids"].shape[1] :]
    return tokenizer.batch_decode(answers, skip_special_tokens=True)
