"""How good a ranking is, when the right document of each query is known."""

from __future__ import annotations

from collections.abc import Sequence


def rank_of(expected: frozenset[str], found: Sequence[str]) -> int | None:
    """The place, from 1, of the first document that is one of the expected; None when none was found."""
    return next((rank for rank, document in enumerate(found, start=1) if document in expected), None)


def hit_at(k: int, ranks: Sequence[int | None]) -> float:
    """The share of queries whose first right document is among the first `k`."""
    return sum(rank is not None and rank <= k for rank in ranks) / len(ranks)


def mean_reciprocal_rank(ranks: Sequence[int | None]) -> float:
    """The mean of 1 / rank; a query whose document was not found counts 0 (Voorhees, TREC-8, 1999)."""
    return sum(1 / rank for rank in ranks if rank) / len(ranks)
