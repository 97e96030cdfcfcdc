"""Search: by meaning, by words, or both ranks fused; then, if asked for, ordered again."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from executors.base import ExecutorError
from executors.rag.chunking import Chunk
from executors.rag.embedding import Embedder
from executors.rag.index import Index
from executors.rag.reranking import Reranker
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.retrieval import Search

if TYPE_CHECKING:
    import numpy

_WORD = re.compile(r"\w+")
_RRF = 60
"""The constant k of Cormack, Clarke and Büttcher (SIGIR 2009)."""
_CANDIDATES = 50
"""Passages that each ranking gives to the fusion and to the second ordering, at least."""


@dataclass(frozen=True)
class Hit:
    """A passage that was found. `similarity` is the cosine to the query, None when only its words were compared."""

    chunk: Chunk
    score: float
    similarity: float | None
    search_score: float | None = None
    """The score before a cross-encoder gave its own; None when there is none."""

    def item(self) -> dict[str, Json]:
        """The hit as it stands in a result."""
        return {
            "id": self.chunk.id,
            "score": self.score,
            "text": self.chunk.text,
            "payload": {
                "document": self.chunk.document,
                "start": self.chunk.start,
                "similarity": self.similarity,
                **({} if self.search_score is None else {"search_score": self.search_score}),
                **self.chunk.metadata,
            },
        }


class Searcher:
    """Answers queries from an index."""

    def __init__(self, index: Index, embedder: Embedder, search: Search, reranker: Reranker | None = None) -> None:
        """Raises ExecutorError when the search names a cross-encoder and none is given."""
        if search.rerank_model is not None and reranker is None:
            raise ExecutorError(
                "rag.search.rerank_model cannot be used by this type of task yet.",
                "Write rerank: true, which compares words.",
            )
        self._index, self._embedder, self._search, self._reranker = index, embedder, search, reranker
        self._words = [words_of(chunk.text) for chunk in index.chunks]

    def hits(self, queries: Sequence[str]) -> list[list[Hit]]:
        """Return at most `top_k` passages for each query, best first."""
        search, wide = self._search, max(_CANDIDATES, 4 * self._search.top_k)
        dense = self._dense(queries, wide) if self._needs_vectors() else [{} for _ in queries]
        sparse = self._sparse(queries, wide) if search.mode != "dense" else [{} for _ in queries]
        return [self._best(query, *found) for query, *found in zip(queries, dense, sparse, strict=True)]

    def _needs_vectors(self) -> bool:
        return self._search.mode != "bm25" or self._search.similarity_threshold is not None

    def _dense(self, queries: Sequence[str], count: int) -> list[dict[int, float]]:
        """Cosine similarity by position of the nearest passages, best first."""
        self._vectors: numpy.ndarray = self._embedder.vectors(queries)
        return [dict(found) for found in self._index.store.nearest(self._vectors, count)]

    def _sparse(self, queries: Sequence[str], count: int) -> list[dict[int, float]]:
        """BM25 score by position of the passages that share words with the query, best first."""
        from rank_bm25 import BM25Okapi

        ranking = BM25Okapi(self._words)
        return [dict(_top(ranking.get_scores(words_of(query)), count)) for query in queries]

    def _best(self, query: str, dense: dict[int, float], sparse: dict[int, float]) -> list[Hit]:
        search = self._search
        scores = {"dense": lambda: dense, "bm25": lambda: sparse, "hybrid": lambda: fused(dense, sparse)}[search.mode]()
        if search.similarity_threshold is not None:
            least = search.similarity_threshold
            scores = {position: score for position, score in scores.items() if dense.get(position, -1.0) >= least}
        before = scores if self._reranker else {}
        if self._reranker:
            scores = self._judged(self._reranker, query, scores)
        elif search.rerank:
            scores = self._covered(query, scores)
        best = sorted(scores, key=lambda position: (-scores[position], position))[: search.top_k]
        return [Hit(self._index.chunks[at], scores[at], dense.get(at), before.get(at)) for at in best]

    def _judged(self, reranker: Reranker, query: str, scores: dict[int, float]) -> dict[int, float]:
        """The cross-encoder's score of each candidate."""
        made = reranker.scores(query, [self._index.chunks[position].text for position in scores])
        return dict(zip(scores, made, strict=True))

    def _covered(self, query: str, scores: dict[int, float]) -> dict[int, float]:
        """The share of the query's words that a passage holds, rare words weighing more; ties keep their order."""
        asked = set(words_of(query))
        held = {position: asked & set(self._words[position]) for position in scores}
        weight = {word: self._rarity(word) for word in asked}
        whole = sum(weight.values()) or 1.0
        order = sorted(scores, key=lambda position: -scores[position])
        tie = {position: 1e-6 / (1 + rank) for rank, position in enumerate(order)}
        return {position: sum(weight[word] for word in held[position]) / whole + tie[position] for position in scores}

    def _rarity(self, word: str) -> float:
        holding = sum(word in words for words in self._words)
        return math.log(1 + len(self._words) / (1 + holding))


def words_of(text: str) -> list[str]:
    """The words of a text in lower case."""
    return _WORD.findall(text.lower())


def fused(*rankings: dict[int, float]) -> dict[int, float]:
    """Reciprocal rank fusion: the sum of 1 / (60 + rank) over the rankings (Cormack et al., SIGIR 2009)."""
    scores: dict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, position in enumerate(ranking, start=1):
            scores[position] += 1 / (_RRF + rank)
    return dict(scores)


def _top(scores: numpy.ndarray, count: int) -> Iterator[tuple[int, float]]:
    best = (-scores).argsort(kind="stable")[:count]
    return ((int(position), float(scores[position])) for position in best if scores[position] > 0)
