"""How good a ranking is, by hand."""

from __future__ import annotations

import pytest

from executors.rag.metrics import hit_at, mean_reciprocal_rank, measured, rank_of, verdict
from mloc_dagster.spec.retrieval import Rag, Search


def test_metrics_by_hand() -> None:
    assert rank_of(frozenset({"b", "c"}), ["a", "c", "b"]) == 2
    assert rank_of(frozenset({"d"}), ["a"]) is None
    assert hit_at(2, [1, 3, None, 2]) == 0.5
    assert mean_reciprocal_rank([1, 4, None]) == pytest.approx(1.25 / 3)
    assert measured([1, 4, None], 3) == {"hit@1": 1 / 3, "hit@3": 1 / 3, "mrr": pytest.approx(1.25 / 3)}


def test_bounds_are_kept_at_the_bound_itself() -> None:
    told = verdict({"hit@1": 0.5, "hit@2": 0.75, "mrr": 0.6}, 4, bounded(min_hit_rate=0.75, min_mrr=0.6))
    assert told["passed"] is True and told["least hit@2"] == 0.75 and told["least mrr"] == 0.6
    assert "below" not in told


def test_what_is_below_its_bound_is_named() -> None:
    told = verdict({"hit@1": 0.5, "hit@2": 0.75, "mrr": 0.6}, 4, bounded(min_hit_rate=0.8, min_mrr=0.61))
    assert told["passed"] is False
    assert told["below"] == ["hit@2 is 0.75, less than 0.8", "mrr is 0.6, less than 0.61"]


def test_without_bounds_the_numbers_are_shown() -> None:
    seen = {"hit@1": 0.0, "hit@2": 0.0, "mrr": 0.0}
    assert verdict(seen, 4, bounded()) == {"passed": True, "queries": 4, **seen}


def bounded(**bounds: float) -> Rag:
    return Rag(search=Search(top_k=2), **bounds)
