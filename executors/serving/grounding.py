"""Passages of an index behind a chat: the last question is searched for, and answers tell what they cite."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from executors.context import TaskContext
from executors.messages import as_conversation
from executors.prompts import PromptRow
from executors.rag.answering import SYSTEM, citations, prompt_with, with_context
from executors.rag.retrieval import opened_index
from executors.rag.search import Hit
from executors.serving.engines import Lease
from executors.serving.remote_engine import RemoteTokenizer, ask
from executors.serving.requests import ChatRequest
from executors.serving.tools import messages_of
from mloc_dagster.spec.base import Json

_ANSWER_TOKENS = 512
"""Room for an answer when the request does not say how long it may be."""


@dataclass(frozen=True)
class Grounded:
    """A conversation with passages in its last question."""

    messages: list[dict[str, Json]]
    passages: tuple[Hit, ...]

    def context(self, answer: str) -> dict[str, Json]:
        """What an answer cites, and the passages that it was given, numbered from 1."""
        ids = [hit.chunk.id for hit in self.passages]
        return {"citations": citations(answer, ids), "passages": [hit.item() for hit in self.passages]}


class Grounding:
    """An index that stays open, and the embedding model that reads it."""

    def __init__(self, ctx: TaskContext, lease: Lease) -> None:
        self._rag = ctx.spec.rag
        self._system = ctx.spec.inference.system_prompt
        self._lease = lease
        self._lock = threading.Lock()
        self._open = ExitStack()  # held: the index is closed when the last one lets go of it
        opened = self._open.enter_context(opened_index(ctx))
        self._searcher, self.warnings = opened.searcher, opened.warnings

    def close(self) -> None:
        """Close the index."""
        self._open.close()

    def ground(self, messages: Sequence[dict[str, Json]], body: dict[str, Json]) -> Grounded:
        """Search for the last question and put what fits of the passages before it.

        Raises ExecutorError when the question with one passage leaves no room for an answer.
        """
        request = ChatRequest.model_validate({"messages": list(messages)})
        turns = as_conversation([{**one} for one in messages_of(request, template_knows_tools=False)])
        if not any(turn["role"] == "user" for turn in turns):
            return Grounded(list(messages), ())
        query = next(turn["content"] for turn in reversed(turns) if turn["role"] == "user")
        with self._lock:
            [hits] = self._searcher.hits([query])
        tokenizer = RemoteTokenizer(lambda path, asked: ask(self._lease, path, asked), self._lease.state.chat_template)
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or _ANSWER_TOKENS
        room = None if self._lease.state.context is None else self._lease.state.context - int(limit)
        row = PromptRow(0, turns if tokenizer.chat_template else query, {})
        system = self._system or SYSTEM
        prompt = prompt_with(tokenizer, system, row, query, hits, self._rag.max_context_tokens, room)
        told = with_context(row, query, prompt.passages).prompt
        conversation = [{"role": "user", "content": told}] if isinstance(told, str) else told
        if conversation[0]["role"] != "system":
            conversation = [{"role": "system", "content": system}, *conversation]
        return Grounded(list(conversation), prompt.passages)
