"""`rag` and `retrieval`: the passages that answer each query."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from executors.base import ExecutorError, Result
from executors.context import TaskContext
from executors.prompts import PromptRow, prompt_rows
from executors.rag.embedding import Embedder
from executors.rag.index import Meta, open_index
from executors.rag.indexing import USES, build_index
from executors.rag.metrics import measured, rank_of, verdict
from executors.rag.reranking import Reranker
from executors.rag.search import Hit, Searcher
from executors.rag.stores import Server
from mloc_dagster.files.atomic import write_json
from mloc_dagster.spec.base import Json

_DATA = (
    "type", "url", "name", "dataset_name", "config_name", "revision", "split", "column", "shuffle", "seed",
    "max_samples", "metadata_columns", "metadata_include_all", "items", "metadata", "template.*", "task", "prompts",
    "jsonl.*", "input_sources.*", "processing.*", "source.*",
)  # fmt: skip
RETRIEVAL_USES = frozenset({
    *USES, "rag.search.mode", "rag.search.top_k", "rag.search.similarity_threshold", "rag.search.rerank",
    "rag.search.rerank_model.*", "rag.queries", "rag.expected_field", "rag.min_hit_rate", "rag.min_mrr",
    "query", "task", "inference.prompts", *(f"data.{key}" for key in _DATA),
})  # fmt: skip


@dataclass(frozen=True)
class Retrieved:
    """Queries and what was found for each, in the same order."""

    rows: tuple[PromptRow, ...]
    queries: list[str]
    hits: list[list[Hit]]
    index: Path
    meta: Meta
    seconds: float
    metrics: dict[str, float]
    """hit@k and MRR, when the queries say what should be found."""
    verdict: dict[str, Json]
    """The same held against its bounds, for the asset check."""
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Opened:
    """An index that can be searched."""

    searcher: Searcher
    folder: Path
    meta: Meta
    warnings: tuple[str, ...]
    """What was passed over when the index was made here."""


class RetrievalExecutor:
    """`retrieval`: finds the passages of an index that answer each query."""

    name = "retrieval"
    inline = False
    uses = RETRIEVAL_USES
    loads_torch = True
    section = None

    def run(self, ctx: TaskContext) -> Result:
        """Open or make the index, search, write `queries.json`."""
        found = retrieve(ctx)
        queries = [
            {"index": row.index, "query": query, "items": [hit.item() for hit in hits], "metadata": row.metadata}
            for row, query, hits in zip(found.rows, found.queries, found.hits, strict=True)
        ]
        write_queries(ctx, queries)
        usage: dict[str, Json] = {"num_requests": len(queries), "latency_sec": found.seconds}
        payload: dict[str, Json] = {"ok": True, "queries": queries, "usage": usage, "index_path": str(found.index)}
        if found.metrics:
            payload |= {"metrics": found.metrics, "retrieval": found.verdict}
        return Result(
            payload=payload,
            metrics={"queries": len(queries), "latency_sec": found.seconds, **found.metrics},
            metadata={"embedding_digest": found.meta.embedding_digest, "chunks": found.meta.chunks,
                      "warnings": list(found.warnings)},
        )  # fmt: skip


class RagExecutor(RetrievalExecutor):
    """`rag`: the same as `retrieval`."""

    name = "rag"


def retrieve(ctx: TaskContext) -> Retrieved:
    """Search the index for every query of the stage. Raises ExecutorError for conversations and missing indexes."""
    source = prompt_rows(ctx)
    queries = [_query(row) for row in source.rows]
    expected = _expected(ctx, source.rows)
    rag = ctx.spec.rag
    with opened_index(ctx) as found:
        started = time.monotonic()
        hits = found.searcher.hits(queries)
        seconds = time.monotonic() - started
    ctx.progress.update(len(queries), len(queries), "queries")
    metrics = measured(_ranks(expected, hits), rag.search.top_k) if expected else {}
    judged = verdict(metrics, len(queries), rag) if expected else {}
    warnings = (*source.warnings, *found.warnings)
    return Retrieved(source.rows, queries, hits, found.folder, found.meta, seconds, metrics, judged, warnings)


@contextmanager
def opened_index(ctx: TaskContext) -> Iterator[Opened]:
    """Open the index that the stage names, or make one of its documents; it is closed at the end of the block."""
    rag, embedder = ctx.spec.rag, Embedder(ctx)
    reranker = Reranker(ctx) if rag.search.rerank_model else None
    folder, warnings = _index_folder(ctx, embedder)
    opened = open_index(
        folder,
        ctx.out / ".cache" / "index",
        embedding_digest=embedder.digest,
        collection=rag.vector_store.collection,
        server=Server(rag.vector_store.url, rag.vector_store.api_key),
    )
    with opened as index:
        yield Opened(Searcher(index, embedder, rag.search, reranker), folder, index.meta, warnings)


def quality(ctx: TaskContext, queries: Sequence[Mapping[str, Json]]) -> dict[str, float]:
    """hit@k and MRR of queries as they stand in a result; nothing when the stage does not say what is right."""
    rows = [PromptRow(query["index"], query["query"], query["metadata"]) for query in queries]
    expected = _expected(ctx, rows)
    found = [[item["payload"]["document"] for item in query["items"]] for query in queries]
    ranks = [rank_of(right, documents) for right, documents in zip(expected, found, strict=True)] if expected else []
    return measured(ranks, ctx.spec.rag.search.top_k) if expected else {}


def write_queries(ctx: TaskContext, queries: Sequence[Mapping[str, Json]]) -> None:
    """Write `queries.json`, which every retrieval leaves in its run folder."""
    write_json(ctx.out / "queries.json", ctx.redact(list(queries)))


def _index_folder(ctx: TaskContext, embedder: Embedder) -> tuple[Path, tuple[str, ...]]:
    """The index that the stage names, or one of its own documents."""
    rag = ctx.spec.rag
    if rag.documents is not None:
        built = build_index(ctx, embedder)
        return built.folder, built.warnings
    if rag.vector_store.path is None:
        raise ExecutorError(
            "The stage names no index.",
            "Write rag.vector_store.path: ${<stage>.result.index_path}, or give rag.documents.",
        )
    return Path(rag.vector_store.path).expanduser(), ()


def _query(row: PromptRow) -> str:
    """The text that is searched for: the prompt, or the last turn of the user."""
    if isinstance(row.prompt, str):
        text = row.prompt
    else:
        text = next((turn["content"] for turn in reversed(row.prompt) if turn["role"] == "user"), "")
    if not text.strip():
        raise ExecutorError(f"Query {row.index} is empty.", "Drop this row; rows are counted from 0.")
    return text


def _expected(ctx: TaskContext, rows: Sequence[PromptRow]) -> list[frozenset[str]]:
    """The documents that each query should find; empty when the stage does not say where they are named."""
    name = ctx.spec.rag.expected_field
    if name is None:
        return []
    missing = [row.index for row in rows if not row.metadata.get(name)]
    if missing:
        raise ExecutorError(
            f"rag.expected_field is {name!r}, which the metadata of rows {', '.join(map(str, missing[:10]))} lacks.",
            "Carry the field along with data.metadata_columns, or mend these rows.",
        )
    values = [row.metadata[name] for row in rows]
    return [frozenset(map(str, value)) if isinstance(value, list) else frozenset({str(value)}) for value in values]


def _ranks(expected: Sequence[frozenset[str]], hits: Sequence[Sequence[Hit]]) -> list[int | None]:
    return [rank_of(right, [hit.chunk.document for hit in found]) for right, found in zip(expected, hits, strict=True)]
