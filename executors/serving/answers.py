"""Answers in the shape of the OpenAI protocol."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from executors.serving.batching import Generated
from mloc_dagster.spec.base import Json


@dataclass(frozen=True)
class Answer:
    """What all parts of one answer have in common."""

    id: str
    model: str
    created: int
    prompt_tokens: int

    @classmethod
    def new(cls, prefix: str, model: str, prompt_tokens: int) -> Answer:
        """One with an id of its own."""
        return cls(f"{prefix}-{uuid.uuid4().hex}", model, int(time.time()), prompt_tokens)

    def usage(self, made: int) -> dict[str, Json]:
        """Tokens of the prompts, of the texts, and together."""
        total = self.prompt_tokens + made
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": made, "total_tokens": total}

    def part(self, kind: str, choices: list[Json]) -> dict[str, Json]:
        """A response or a chunk."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def completion_response(answer: Answer, found: Sequence[Generated], *, with_ids: bool) -> dict[str, Json]:
    """The whole answer of `/v1/completions`."""
    choices: list[Json] = [
        {"index": index, "text": one.completion.text, "logprobs": None, "finish_reason": one.completion.finish_reason,
         "tokens": one.completion.tokens, **({"token_ids": one.tokens} if with_ids else {})}
        for index, one in enumerate(found)
    ]  # fmt: skip
    return {**answer.part("text_completion", choices), "usage": answer.usage(_made(found))}


def completion_chunk(answer: Answer, index: int, text: str | None, finish_reason: str | None) -> dict[str, Json]:
    """A piece of a streamed completion."""
    choice = {"index": index, "text": text or "", "logprobs": None, "finish_reason": finish_reason}
    return answer.part("text_completion", [choice])


def chat_response(
    answer: Answer, found: Sequence[Generated], texts: Sequence[tuple[str, list[dict[str, Json]]]]
) -> dict[str, Json]:
    """The whole answer of `/v1/chat/completions`."""
    choices: list[Json] = []
    for index, (one, (text, calls)) in enumerate(zip(found, texts, strict=True)):
        message: dict[str, Json] = {"role": "assistant", "content": text or None if calls else text}
        if calls:
            message["tool_calls"] = calls
        reason = "tool_calls" if calls else one.completion.finish_reason
        choices.append({"index": index, "message": message, "logprobs": None, "finish_reason": reason})
    return {**answer.part("chat.completion", choices), "usage": answer.usage(_made(found))}


def chat_chunk(answer: Answer, index: int, text: str | None, finish_reason: str | None) -> dict[str, Json]:
    """A piece of a streamed chat answer; the first one, with the text "", names the role."""
    delta: dict[str, Json] = {} if text is None else {"content": text}
    if text == "":
        delta["role"] = "assistant"
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return answer.part("chat.completion.chunk", [choice])


def _made(found: Sequence[Generated]) -> int:
    return sum(one.completion.tokens for one in found)
