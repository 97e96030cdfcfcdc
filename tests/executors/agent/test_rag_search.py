"""`rag_search` over a real small index of an earlier stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from executors.base import ExecutorError
from executors.host import execute
from tests.executors.agent.conftest import MakeJob, Serve, items_of, tools_in
from tests.executors.agent.scripted import asked, call, last, say, turns
from tests.executors.rag.conftest import Stages, minilm, stages

__all__ = ["minilm", "stages"]


def test_an_agent_searches_an_index(serve: Serve, agent_job: MakeJob, stages: Stages) -> None:
    index = execute(stages.job("rag_indexing", "index")).payload["index_path"]
    rag = {
        "embedding": {"type": "local", "model": str(stages.minilm)}, "vector_store": {"path": index},
        "search": {"top_k": 1},
    }  # fmt: skip
    server = serve(
        lambda body: say(last(body)["content"]) if turns(body) else call("rag_search", {"query": asked(body)})
    )
    job = agent_job(
        server, {"tools": ["rag_search"]}, items=["Why is sea water salty?", "What makes dough rise?"], rag=rag,
        embedding_path=stages.minilm, cache=stages.root / "cache",
    )  # fmt: skip
    sea, bread = items_of(job)
    assert sea["output"].startswith("[1] (sea.md)") and "rivers carry minerals" in sea["output"]
    assert bread["output"].startswith("[1] (bread.txt)") and not tools_in(bread)[0]["is_error"]


def test_an_agent_indexes_its_own_documents(serve: Serve, agent_job: MakeJob, stages: Stages) -> None:
    rag = {
        "embedding": {"type": "local", "model": str(stages.minilm)},
        "documents": {"source": {"path": str(stages.notes)}},
    }
    server = serve(
        lambda body: say(last(body)["content"]) if turns(body) else call("rag_search", {"query": "blue sky"})
    )
    job = agent_job(
        server, {"tools": ["rag_search"]}, rag=rag, embedding_path=stages.minilm, cache=stages.root / "cache"
    )
    assert items_of(job)[0]["output"].startswith("[1] (sky.html)")


def test_an_index_that_is_not_there_is_refused(
    serve: Serve, agent_job: MakeJob, stages: Stages, tmp_path: Path
) -> None:
    rag = {
        "embedding": {"type": "local", "model": str(stages.minilm)},
        "vector_store": {"path": str(tmp_path / "none")},
    }
    job = agent_job(
        serve(lambda body: say("x")), {"tools": ["rag_search"]}, rag=rag, embedding_path=stages.minilm,
        cache=stages.root / "cache",
    )  # fmt: skip
    with pytest.raises(ExecutorError, match="is not there"):
        items_of(job)
