"""How good a ranking is, when the right document of each query is known."""

from __future__ import annotations

from collections.abc import Sequence

from mloc_dagster.spec.base import Json
from mloc_dagster.spec.retrieval import Rag


def rank_of(expected: frozenset[str], found: Sequence[str]) -> int | None:
    """The place, from 1, of the first document that is one of the expected; None when none was found."""
    return next((rank for rank, document in enumerate(found, start=1) if document in expected), None)


def hit_at(k: int, ranks: Sequence[int | None]) -> float:
    """The share of queries whose first right document is among the first `k`."""
    return sum(rank is not None and rank <= k for rank in ranks) / len(ranks)


def mean_reciprocal_rank(ranks: Sequence[int | None]) -> float:
    """The mean of 1 / rank; a query whose document was not found counts 0 (Voorhees, TREC-8, 1999)."""
    return sum(1 / rank for rank in ranks if rank) / len(ranks)


def measured(ranks: Sequence[int | None], top_k: int) -> dict[str, float]:
    """hit@1, hit@`top_k` and the mean reciprocal rank."""
    return {**{f"hit@{k}": hit_at(k, ranks) for k in sorted({1, top_k})}, "mrr": mean_reciprocal_rank(ranks)}


def verdict(metrics: dict[str, float], queries: int, rag: Rag) -> dict[str, Json]:
    """What the asset check `retrieval` reports: the numbers, and which of them are below their bounds."""
    bounds = {f"hit@{rag.search.top_k}": rag.min_hit_rate, "mrr": rag.min_mrr}
    given = {name: least for name, least in bounds.items() if least is not None}
    low = {name: least for name, least in given.items() if metrics[name] < least}
    below: list[Json] = [f"{name} is {metrics[name]:.4g}, less than {least:g}" for name, least in low.items()]
    return {
        "passed": not below,
        **metrics,
        "queries": queries,
        **{f"least {name}": least for name, least in given.items()},
        **({"below": below} if below else {}),
    }
