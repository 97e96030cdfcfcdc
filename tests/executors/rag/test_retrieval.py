"""Queries to passages, with a real embedding model and a real Chroma."""

from __future__ import annotations

import json

import pytest

from tests.executors.rag.conftest import RIGHT, Stages


@pytest.mark.parametrize("mode", ["hybrid", "dense", "bm25"])
def test_each_way_of_searching_finds_the_right_document_first(mode: str, stages: Stages) -> None:
    found = stages.asked(stages.indexed()["index_path"], {"mode": mode, "top_k": 2})
    assert [query["items"][0]["payload"]["document"] for query in found["queries"]] == RIGHT
    assert found["metrics"] == {"hit@1": 1.0, "hit@2": 1.0, "mrr": 1.0}
    assert found["retrieval"] == {"passed": True, "queries": 3, **found["metrics"]}
    assert json.loads((stages.root / "search" / "queries.json").read_text("utf-8")) == found["queries"]


def test_a_threshold_leaves_out_what_is_far_away(stages: Stages) -> None:
    index = stages.indexed()["index_path"]
    assert all(len(query["items"]) == 3 for query in stages.asked(index, {"rerank": True})["queries"])
    near = stages.asked(index, {"similarity_threshold": 0.4}, "near")
    assert [len(query["items"]) for query in near["queries"]] == [1, 1, 1]
