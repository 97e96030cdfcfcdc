"""Answers from passages, by a tiny model."""

from __future__ import annotations

import pytest

from executors.base import ExecutorError
from executors.host import execute
from executors.rag.answering import citations
from tests.executors.rag.conftest import Stages


def test_answers_hold_passages_within_the_budget(stages: Stages) -> None:
    rag = {"search": {"top_k": 2}, "max_context_tokens": 130}
    spec = {"query": "Why is the sea salty?", "inference": {"system_prompt": "s", "max_tokens": 8, "temperature": 0}}
    found = execute(stages.job("rag_inference", "answer", rag, **spec))
    [query] = found.payload["queries"]
    assert query["passages"] == ["sea.md#0"] and len(query["items"]) == 2
    assert query["answer"] and found.payload["usage"]["completion_tokens"] == 8
    assert found.metadata["weights_digest"].startswith("sha256:")
    with pytest.raises(ExecutorError, match="not even one passage fits"):
        execute(stages.job("rag_inference", "small", rag | {"max_context_tokens": 5}, **spec))


def test_citations_name_passages() -> None:
    assert citations("So [2], and [1][2], not [7].", ["a", "b"]) == [
        {"number": 2, "id": "b"},
        {"number": 1, "id": "a"},
        {"number": 7, "id": None},
    ]
