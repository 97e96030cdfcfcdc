"""From requests to token ids, as the inference stage makes them."""

from __future__ import annotations

from typing import Any

from executors.base import ExecutorError
from executors.inference.chat import render, tokenize
from executors.prompts import PromptRow
from executors.serving.requests import ChatRequest
from executors.serving.tools import definition, messages_of
from mloc_dagster.spec.base import Json


class Prompts:
    """Makes token ids with one tokenizer; `context` is the model's limit in tokens."""

    def __init__(self, tokenizer: Any, context: int | None) -> None:
        self._tokenizer = tokenizer
        self._context = context
        self._knows_tools = "tools" in str(getattr(tokenizer, "chat_template", None) or "")

    def plain(self, prompt: str | list[str] | list[int] | list[list[int]]) -> list[list[int]]:
        """Ids of one or several prompts; raises ExecutorError for one that leaves no room for an answer."""
        if isinstance(prompt, str):
            return self.plain([prompt])
        if prompt and isinstance(prompt[0], int):
            return self.plain([prompt])  # type: ignore[list-item]
        ids = [self._tokenizer(one)["input_ids"] if isinstance(one, str) else one for one in prompt]
        return [self._fitting(one) for one in ids]  # type: ignore[arg-type]

    def chat(self, request: ChatRequest) -> list[int]:
        """Ids of a conversation with its tools."""
        messages = messages_of(request, template_knows_tools=self._knows_tools)
        tools = [definition(tool) for tool in request.tools] if self._knows_tools and request.choice != "none" else None
        return self._fitting(self.conversation(messages, tools or None))

    def conversation(self, messages: list[dict[str, Json]], tools: list[dict[str, Json]] | None = None) -> list[int]:
        """Ids of messages; a model without a chat template takes a single turn, with a system prompt before it."""
        if getattr(self._tokenizer, "chat_template", None):
            text = render(self._tokenizer, messages, "The request", tools)
            return self._tokenizer(text, add_special_tokens=False)["input_ids"]
        system = "\n\n".join(message["content"] for message in messages if message["role"] == "system") or None
        turns = [message for message in messages if message["role"] != "system"]
        if len(turns) != 1:
            raise ExecutorError("The request is a conversation, but the model has no chat template.", "Send one turn.")
        [ids] = tokenize(self._tokenizer, [PromptRow(0, turns[0]["content"], {})], system, None)
        return ids

    def _fitting(self, ids: list[int]) -> list[int]:
        if not ids:
            raise ExecutorError("The prompt is empty.", "Send a text.")
        if self._context and len(ids) >= self._context:
            raise ExecutorError(
                f"The prompt has {len(ids)} tokens and fills the model's context of {self._context}.", "Shorten it."
            )
        return ids
