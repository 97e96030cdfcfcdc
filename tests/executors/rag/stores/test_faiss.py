"""FAISS beside Chroma."""

from __future__ import annotations

import pytest

from tests.executors.rag.conftest import Stages


def test_faiss_finds_what_chroma_finds(stages: Stages) -> None:
    pytest.importorskip("faiss")
    chroma = stages.asked(stages.indexed()["index_path"], {"mode": "dense"})
    faiss = stages.indexed("faiss", vector_store={"type": "faiss"})
    other = stages.asked(faiss["index_path"], {"mode": "dense"}, "other")
    for one, two in zip(chroma["queries"], other["queries"], strict=True):
        assert [item["id"] for item in one["items"]] == [item["id"] for item in two["items"]]
        assert [item["score"] for item in one["items"]] == pytest.approx([i["score"] for i in two["items"]], abs=1e-4)
