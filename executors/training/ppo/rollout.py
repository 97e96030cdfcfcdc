"""Sampling answers, and the batches that are made of them."""

from __future__ import annotations

import random
import threading
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from mloc_dagster.spec.training import Generation


class Abandoned(Exception):
    """Sampling was asked to stop; nothing has been learned from the step yet."""


@dataclass(frozen=True)
class Answers:
    """Sampled answers to the prompts of some rows. `ended` tells of each whether it came to its end by itself."""

    rows: list[int]
    prompts: list[list[int]]
    tokens: list[list[int]]
    texts: list[str]
    ended: list[bool]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Batch:
    """Prompts padded on the left and answers padded on the right, side by side; masks are 0 at padding."""

    input_ids: Tensor
    attention_mask: Tensor
    answer_ids: Tensor
    answer_mask: Tensor


def joined(parts: Sequence[Answers]) -> Answers:
    """The answers of all parts, in order."""
    return Answers(
        [one for part in parts for one in part.rows],
        [one for part in parts for one in part.prompts],
        [one for part in parts for one in part.tokens],
        [one for part in parts for one in part.texts],
        [one for part in parts for one in part.ended],
    )


def chunks(items: Sequence[int], size: int) -> list[list[int]]:
    """The items in lists of at most `size`."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def batch_of(answers: Answers, chosen: Sequence[int], pad: int, device: torch.device) -> Batch:
    """The chosen answers with their prompts, no wider than the longest of them."""
    prompts, tokens = [answers.prompts[one] for one in chosen], [answers.tokens[one] for one in chosen]
    asked, asked_mask = padded(prompts, pad, "left")
    answer_ids, answer_mask = padded(tokens, pad, "right")
    return Batch(
        torch.cat([asked, answer_ids], dim=1).to(device),
        torch.cat([asked_mask, answer_mask], dim=1).to(device),
        answer_ids.to(device),
        answer_mask.to(device),
    )


def padded(sequences: Sequence[Sequence[int]], pad: int, side: str) -> tuple[Tensor, Tensor]:
    """Ids and mask of shape (sequences, longest); the mask is by length, so that `pad` may be a token that occurs."""
    ids = pad_sequence([torch.tensor(one) for one in sequences], True, pad, side)
    mask = pad_sequence([torch.ones(len(one), dtype=torch.long) for one in sequences], True, 0, side)
    return ids, mask


def rows_of_step(step: int, batch: int, rows: int, seed: int) -> list[int]:
    """The rows that a step answers; steps follow each other through one shuffled epoch after another.

    It depends on nothing else, so the number of a step is all that a checkpoint must know of the data.
    """
    places = (divmod(position, rows) for position in range(step * batch, (step + 1) * batch))
    return [_order(rows, seed, epoch)[place] for epoch, place in places]


@lru_cache(maxsize=2)
def _order(rows: int, seed: int, epoch: int) -> list[int]:
    return random.Random(f"{seed}/{epoch}").sample(range(rows), rows)


class Sampler:
    """Answers prompts with the policy as it is, by `spec.generation`.

    What is learned is the policy at `temperature`; `top_k` and `top_p` only narrow what is sampled from it.
    """

    def __init__(self, tokenizer: Any, generation: Generation, ends: Sequence[int], stop: threading.Event) -> None:
        self._tokenizer = tokenizer
        self.padding: int = tokenizer.pad_token_id
        self._ends = frozenset(ends)
        self._texts = [generation.stop] if isinstance(generation.stop, str) else list(generation.stop or ())
        self._criteria = StoppingCriteriaList([_OnRequest(stop)])
        self._stop = stop
        sampled = is_sampled(generation)
        sampling: dict[str, Any] = {
            "temperature": generation.temperature, "top_p": generation.top_p, "top_k": generation.top_k or 0,
        }  # fmt: skip
        self._config = GenerationConfig(
            max_new_tokens=generation.max_new_tokens, do_sample=sampled, eos_token_id=sorted(self._ends),
            pad_token_id=self.padding, stop_strings=self._texts or None, repetition_penalty=1.0,
            use_cache=True, **(sampling if sampled else {}),
        )  # fmt: skip

    @torch.no_grad()
    def __call__(self, policy: Any, rows: list[int], prompts: list[list[int]], device: torch.device) -> Answers:
        """Answer the prompts, all at once. Raises Abandoned when the training was asked to stop meanwhile."""
        ids, mask = padded(prompts, self.padding, "left")
        made = policy.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=self._config,
            stopping_criteria=self._criteria, tokenizer=self._tokenizer if self._texts else None,
        )  # fmt: skip
        if self._stop.is_set():
            raise Abandoned
        cut = [self._until_end(tokens) for tokens in made[:, ids.shape[1] :].tolist()]
        texts = [self._text(tokens) for tokens, _ in cut]
        return Answers(rows, prompts, [tokens for tokens, _ in cut], texts, [ended for _, ended in cut])

    def _until_end(self, tokens: list[int]) -> tuple[list[int], bool]:
        """The tokens up to the one that ended the answer, which is learned too, and whether there was one."""
        end = next((place for place, token in enumerate(tokens) if token in self._ends), len(tokens))
        kept = tokens[: end + 1]
        if self._texts and self._stopped(kept):
            kept = kept[: bisect_left(range(len(kept) + 1), True, key=lambda size: self._stopped(kept[:size]))]
            return kept, True
        return kept, end < len(tokens)

    def _stopped(self, tokens: list[int]) -> bool:
        text = self._decoded(tokens)
        return any(stop in text for stop in self._texts)

    def _text(self, tokens: list[int]) -> str:
        """The answer without the token or the text that ended it."""
        text = self._decoded(tokens)
        return text[: min((place for stop in self._texts if (place := text.find(stop)) >= 0), default=None)]

    def _decoded(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def is_sampled(generation: Generation) -> bool:
    """Whether answers are drawn; temperature 0 means the likeliest token, as in inference."""
    return generation.do_sample and generation.temperature > 0


def ends_of(policy: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: the tokenizer's and those of the model's generation config."""
    configured = policy.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    return sorted({end for end in [*ends, tokenizer.eos_token_id] if end is not None})


class _OnRequest(StoppingCriteria):
    """Ends all answers once the training is asked to stop."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return torch.full((len(input_ids),), self._stop.is_set(), device=input_ids.device)
