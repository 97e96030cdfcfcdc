"""From texts to token ids, and the place from which on tokens are scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from executors.base import ExecutorError
from executors.inference.transformers_engine import TransformersEngine
from executors.messages import Text
from executors.rows import as_turns


@dataclass(frozen=True)
class Scored:
    """Token ids of one row; those from `start` (1 or later) on are scored."""

    ids: list[int]
    start: int

    @property
    def count(self) -> int:
        """Tokens that are scored."""
        return len(self.ids) - self.start


def text_tokens(engine: TransformersEngine, text: Text, index: int) -> Scored:
    """A whole text: all its tokens but the first, which nothing comes before."""
    if isinstance(text, str):
        ids = engine.tokenizer(text)["input_ids"]
    else:
        ids = _rendered(engine.tokenizer, text, index, answer=False)
    return _checked(engine, ids, 1, index)


def answer_tokens(engine: TransformersEngine, prompt: Text, answer: Text, separator: str, index: int) -> Scored:
    """An answer after its prompt: the tokens of the answer, as in training.

    For a model with a chat template both are turns; what the template writes after the answer counts. For a plain
    model `separator` and the answer follow the prompt, and count both; the end of the text is not scored.
    """
    tokenizer = engine.tokenizer
    if getattr(tokenizer, "chat_template", None):
        turns = as_turns(prompt, "user")
        before = _rendered(tokenizer, turns, index, answer=True)
        ids = _rendered(tokenizer, [*turns, *as_turns(answer, "assistant")], index, answer=False)
    elif isinstance(prompt, str) and isinstance(answer, str):
        before = tokenizer(prompt)["input_ids"]
        ids = tokenizer(f"{prompt}{separator}{answer}")["input_ids"]
    else:
        raise _no_template(index)
    same = next((place for place, (one, two) in enumerate(zip(before, ids, strict=False)) if one != two), len(before))
    return _checked(engine, ids, max(1, same), index)


def _rendered(tokenizer: Any, turns: list[dict[str, str]], index: int, *, answer: bool) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise _no_template(index)
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _no_template(index: int) -> ExecutorError:
    return ExecutorError(
        f"Row {index} is a conversation, but the model has no chat template.", "Use a chat model or plain text."
    )


def _checked(engine: TransformersEngine, ids: list[int], start: int, index: int) -> Scored:
    if len(ids) <= start:
        raise ExecutorError(
            f"Row {index} has {len(ids)} tokens, of which none can be scored.", "Drop the row; rows count from 0."
        )
    if engine.context and len(ids) > engine.context:
        raise ExecutorError(
            f"Row {index} has {len(ids)} tokens; the model's context holds {engine.context}.",
            "Shorten or drop the row; rows count from 0.",
        )
    return Scored(ids, start)
