"""Documents to index to passages to answers, with a real embedding model and a real Chroma."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from executors.base import ExecutorError
from executors.host import execute
from executors.rag.answering import citations
from executors.rag.documents import text_of_html
from executors.rag.metrics import hit_at, mean_reciprocal_rank
from executors.rag.search import fused
from tests.executors.conftest import start_host
from tests.executors.rag.conftest import Stages

QUERIES = ["Why is sea water salty?", "What makes dough rise?", "Why is the sky blue?"]
RIGHT = ["sea.md", "bread.txt", "sky.html"]


def indexed(stages: Stages, name: str = "index", **rag: Any) -> dict[str, Any]:
    result = execute(stages.job("rag_indexing", name, rag))
    return result.payload | {"embedded": result.metrics["embedded"]}


def asked(stages: Stages, index: str, search: dict[str, Any], name: str = "search") -> dict[str, Any]:
    rag = {"vector_store": {"path": index}, "search": search, "expected_field": "right"}
    data = {"items": QUERIES, "metadata": [{"right": right} for right in RIGHT]}
    return execute(stages.job("rag", name, rag, data=data)).payload


@pytest.mark.parametrize("mode", ["hybrid", "dense", "bm25"])
def test_each_way_of_searching_finds_the_right_document_first(mode: str, stages: Stages) -> None:
    found = asked(stages, indexed(stages)["index_path"], {"mode": mode, "top_k": 2})
    assert [query["items"][0]["payload"]["document"] for query in found["queries"]] == RIGHT
    assert found["metrics"] == {"hit@1": 1.0, "hit@2": 1.0, "mrr": 1.0}
    assert json.loads((stages.root / "search" / "queries.json").read_text("utf-8")) == found["queries"]


def test_faiss_finds_what_chroma_finds(stages: Stages) -> None:
    pytest.importorskip("faiss")
    chroma = asked(stages, indexed(stages)["index_path"], {"mode": "dense"})
    faiss = indexed(stages, "faiss", vector_store={"type": "faiss"})
    other = asked(stages, faiss["index_path"], {"mode": "dense"}, "other")
    for one, two in zip(chroma["queries"], other["queries"], strict=True):
        assert [item["id"] for item in one["items"]] == [item["id"] for item in two["items"]]
        assert [item["score"] for item in one["items"]] == pytest.approx([i["score"] for i in two["items"]], abs=1e-4)


def test_only_changed_documents_are_embedded_again(stages: Stages) -> None:
    assert indexed(stages)["embedded"] == 3
    assert indexed(stages, "again")["embedded"] == 0
    (stages.notes / "bread.txt").write_text("Bread is baked in an oven.\n", "utf-8")
    assert indexed(stages, "changed")["embedded"] == 1


def test_a_threshold_leaves_out_what_is_far_away(stages: Stages) -> None:
    index = indexed(stages)["index_path"]
    assert all(len(query["items"]) == 3 for query in asked(stages, index, {"rerank": True})["queries"])
    near = asked(stages, index, {"similarity_threshold": 0.4}, "near")
    assert [len(query["items"]) for query in near["queries"]] == [1, 1, 1]


def test_a_damaged_index_and_another_model_are_refused(stages: Stages, tmp_path: Path) -> None:
    index = indexed(stages)["index_path"]
    chunks = Path(index) / "chunks.jsonl"
    chunks.write_text("".join(chunks.read_text("utf-8").splitlines(keepends=True)[:2]), "utf-8")
    with pytest.raises(ExecutorError, match="damaged: it holds 2 passages and 3 vectors"):
        asked(stages, index, {})
    meta = json.loads((Path(index) / "index.json").read_text("utf-8"))
    (Path(index) / "index.json").write_text(json.dumps(meta | {"embedding_digest": "sha256:other"}), "utf-8")
    with pytest.raises(ExecutorError, match="cannot be compared"):
        asked(stages, index, {})
    with pytest.raises(ExecutorError, match="is not there"):
        asked(stages, str(tmp_path / "nowhere"), {})


def test_a_kill_while_indexing_leaves_the_old_index(stages: Stages) -> None:
    old = indexed(stages)
    many = {f"n{number}.txt": f"Note {number} tells of thing {number * 7}. " * 20 for number in range(400)}
    for name, text in many.items():
        (stages.notes / name).write_text(text, "utf-8")
    job = stages.job("rag_indexing", "index", {})
    process = start_host(job)
    wal = stages.root / "cache" / "vectors"
    before = sum(file.stat().st_size for file in wal.iterdir())
    until = time.monotonic() + 120
    while sum(file.stat().st_size for file in wal.iterdir()) <= before and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert asked(stages, old["index_path"], {})["metrics"]["mrr"] == 1.0


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


def test_fusion_and_metrics_by_hand() -> None:
    assert fused({5: 0.9, 6: 0.8}, {6: 3.0}) == pytest.approx({5: 1 / 61, 6: 1 / 62 + 1 / 61})
    assert hit_at(2, [1, 3, None, 2]) == 0.5
    assert mean_reciprocal_rank([1, 4, None]) == pytest.approx(1.25 / 3)


def test_html_gives_the_text_that_is_shown() -> None:
    assert text_of_html("<script>x()</script><h1>A&amp;B</h1><p>one <b>two</b></p>") == "A&B\n\none two"


def test_a_document_of_no_known_kind_is_named(stages: Stages) -> None:
    (stages.notes / "x.bin").write_bytes(b"\0")
    source = {"source": {"path": str(stages.notes / "x.bin")}}
    with pytest.raises(ExecutorError, match=r"x\.bin is no document"):
        indexed(stages, documents=source)
