"""Scores that `reward_model` gives: the same functions and models that training is rewarded by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from executors.base import Interrupted
from executors.context import TaskContext
from executors.messages import Text
from executors.tables import Row

_ROWS_AT_ONCE = 64
_same = partial(math.isclose, rel_tol=1e-6, abs_tol=1e-6)
"""Whether two scores differ by no more than the batch that a row is in may change them."""


@dataclass(frozen=True)
class Answered:
    """A prompt (empty for a whole text), an answer to it, and what else its row holds."""

    prompt: Text
    answer: str
    row: Row = field(default_factory=dict)
    separator: str = ""
    """Text between the two, where both are plain text."""


def rewards_of(ctx: TaskContext, answered: Sequence[Answered]) -> list[float]:
    """Return the reward of each answer. Raises ExecutorError when it cannot be had, or is not finite."""
    from executors.training.reward_functions import reward_function

    reward = reward_function(ctx)
    found: list[float] = []
    for first in range(0, len(answered), _ROWS_AT_ONCE):
        part = answered[first : first + _ROWS_AT_ONCE]
        prompts = [f"{_plain(one.prompt)}{one.separator}" for one in part]
        rows = [{**one.row, "prompt": _turns(one.prompt)} for one in part]
        found += reward(prompts, [one.answer for one in part], rows)
        ctx.progress.update(len(found), len(answered), "rows")
        if ctx.stop.is_set():
            raise Interrupted
    return found


def share_won(scores: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return 1 for each row in which the first score is higher, 0.5 for a tie (to a millionth), else 0."""
    return [0.5 if _same(one, other) else float(one > other) for one, other in zip(scores, others, strict=True)]


def _plain(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)


def _turns(prompt: Text) -> Text:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
