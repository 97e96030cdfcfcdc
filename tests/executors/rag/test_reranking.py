"""A cross-encoder orders the passages: it is checked against the same model asked one pair at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from executors.base import ExecutorError
from executors.host import execute
from tests.executors.rag.conftest import QUERIES, Stages


def own_score(folder: Path, query: str, passage: str) -> float:
    """The sigmoid of the model's one logit, computed without sentence-transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**tokenizer(query, passage, return_tensors="pt")).logits.sigmoid().item()


def test_the_order_is_that_of_the_models_own_scores(stages: Stages, cross_encoder: Path) -> None:
    index = stages.indexed()["index_path"]
    plain = stages.asked(index, {})
    job = stages.search_job(index, {"rerank_model": {"model": str(cross_encoder), "batch_size": 2}}, "reranked")
    found = execute(job.model_copy(update={"reranker_path": cross_encoder})).payload
    for query, before, asked in zip(found["queries"], plain["queries"], QUERIES, strict=True):
        own = {item["id"]: own_score(cross_encoder, asked, item["text"]) for item in before["items"]}
        assert [item["id"] for item in query["items"]] == sorted(own, key=lambda name: -own[name])
        assert {item["id"]: item["score"] for item in query["items"]} == pytest.approx(own, abs=1e-5)
        first = {item["id"]: item["score"] for item in before["items"]}
        assert {item["id"]: item["payload"]["search_score"] for item in query["items"]} == first
    orders = [[[item["id"] for item in query["items"]] for query in one["queries"]] for one in (plain, found)]
    assert orders[0] != orders[1], "random weights order the passages as the search did; take another seed"


def test_a_classifier_with_more_labels_is_refused(stages: Stages, cross_encoder: Path, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(cross_encoder).save_pretrained(tmp_path / "three")
    config = BertConfig.from_pretrained(cross_encoder, num_labels=3)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "three")
    job = stages.search_job(stages.indexed()["index_path"], {"rerank_model": {"model": "org/three"}}, "reranked")
    with pytest.raises(ExecutorError, match="org/three gives 3 numbers for a passage, not one score"):
        execute(job.model_copy(update={"reranker_path": tmp_path / "three"}))


def test_a_folder_that_is_no_model_is_named(stages: Stages, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    job = stages.search_job(stages.indexed()["index_path"], {"rerank_model": {"model": "org/none"}}, "reranked")
    with pytest.raises(ExecutorError, match=r"rag\.search\.rerank_model org/none cannot be loaded"):
        execute(job.model_copy(update={"reranker_path": tmp_path / "none"}))
    with pytest.raises(ExecutorError, match=r"rag\.search\.rerank_model is missing"):
        execute(job)
