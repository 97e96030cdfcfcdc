"""From prompt rows to token ids: system prompt and chat template, one way for both engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from executors.base import ExecutorError
from executors.messages import Message, Text
from executors.prompts import PromptRow
from mloc_dagster.spec.base import Json


@runtime_checkable
class ConversationTokenizer(Protocol):
    """A tokenizer that goes from messages to ids in one step, such as one behind an endpoint."""

    def conversation_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the messages and the beginning of an answer."""
        ...


@dataclass(frozen=True)
class Tokenized:
    """Token ids by row, and what is wrong with the rows that cannot be answered."""

    prompts: dict[int, list[int]] = field(default_factory=dict)
    faults: dict[int, ExecutorError] = field(default_factory=dict)


def tokenize_each(
    tokenizer: Any, rows: Sequence[PromptRow], system_prompt: str | None, context: int | None
) -> Tokenized:
    """Do the same as `tokenize`; a row with a fault does not hold up the others."""
    found = Tokenized()
    for row in rows:
        try:
            [found.prompts[row.index]] = tokenize(tokenizer, [row], system_prompt, context)
        except ExecutorError as error:
            found.faults[row.index] = error
    return found


def tokenize(
    tokenizer: Any, rows: Sequence[PromptRow], system_prompt: str | None, context: int | None
) -> list[list[int]]:
    """Return the token ids of each row.

    A model with a chat template gets a conversation, any other the text with the system prompt before it. `context`
    is the model's limit in tokens. Raises ExecutorError naming the rows that leave no room for an answer.
    """
    ids = [_ids(tokenizer, row, system_prompt) for row in rows]
    full = [row.index for row, tokens in zip(rows, ids, strict=True) if context and len(tokens) >= context]
    if full:
        raise ExecutorError(
            f"The prompts of rows {', '.join(map(str, full[:10]))} fill the model's context of {context} tokens.",
            "Shorten them, or use a model with a longer context.",
        )
    empty = [row.index for row, tokens in zip(rows, ids, strict=True) if not tokens]
    if empty:
        raise ExecutorError(f"The prompts of rows {', '.join(map(str, empty[:10]))} are empty.", "Drop these rows.")
    return ids


def _ids(tokenizer: Any, row: PromptRow, system_prompt: str | None) -> list[int]:
    if getattr(tokenizer, "chat_template", None):
        messages = _messages(row.prompt, system_prompt)
        if isinstance(tokenizer, ConversationTokenizer):
            return tokenizer.conversation_ids(messages)
        text = render(tokenizer, messages, f"Row {row.index}")
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    if not isinstance(row.prompt, str):
        raise ExecutorError(
            f"Row {row.index} is a conversation, but the model has no chat template.", "Use a chat model or plain text."
        )
    text = f"{system_prompt}\n\n{row.prompt}" if system_prompt else row.prompt
    return tokenizer(text)["input_ids"]


def _messages(prompt: Text, system_prompt: str | None) -> list[Message]:
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if system_prompt and turns[0]["role"] != "system":
        return [{"role": "system", "content": system_prompt}, *turns]
    return turns


def render(tokenizer: Any, messages: Sequence[Mapping[str, Json]], who: str, tools: Json = None) -> str:
    """The conversation as the model's chat template writes it; raises ExecutorError when the template refuses it."""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ExecutorError(
            f"{who}: the model's chat template refuses the conversation: {error}.",
            "Some models take no system prompt, or want user and assistant in turns.",
        ) from error
