"""`rag_indexing`: documents, passages, vectors, index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from executors.base import ExecutorError, Result
from executors.context import TaskContext
from executors.rag.chunking import chunks_of
from executors.rag.documents import documents_of
from executors.rag.embedding import Embedder
from executors.rag.index import Meta, write_index
from executors.rag.stores import Server, store_of
from mloc_dagster.spec.base import Json

USES = frozenset({
    "rag.vector_store.type", "rag.vector_store.path", "rag.vector_store.collection", "rag.vector_store.url",
    "rag.vector_store.api_key", "rag.embedding.*", "rag.documents.*", "rag.chunk_size", "rag.chunk_overlap",
})  # fmt: skip


@dataclass(frozen=True)
class Built:
    """An index that was just written, and how."""

    folder: Path
    meta: Meta
    embedded: int
    """Passages that were embedded now; the vectors of the others were known."""
    warnings: tuple[str, ...]


class IndexingExecutor:
    """`rag_indexing`: makes an index of documents that later stages search."""

    name = "rag_indexing"
    inline = False
    uses = USES
    loads_torch = True
    section = None

    def run(self, ctx: TaskContext) -> Result:
        """Read, cut, embed, write."""
        built = build_index(ctx, Embedder(ctx))
        meta = built.meta
        payload: dict[str, Json] = {
            "ok": True,
            "index_path": str(built.folder),
            "collection": meta.collection,
            "vector_store": meta.store,
            "embedding_model": meta.embedding_model,
            "documents": meta.documents,
            "chunks": meta.chunks,
            "dimension": meta.dimension,
        }
        return Result(
            payload=payload,
            metrics={"documents": meta.documents, "chunks": meta.chunks, "embedded": built.embedded},
            metadata={"embedding_digest": meta.embedding_digest, "embedded": built.embedded,
                      "warnings": list(built.warnings)},
        )  # fmt: skip


def build_index(ctx: TaskContext, embedder: Embedder) -> Built:
    """Index `rag.documents` in a folder of the stage's own; only passages that are new are embedded."""
    rag, before = ctx.spec.rag, embedder.embedded
    folder = ctx.out / _inner(rag.vector_store.path)
    server = Server(rag.vector_store.url, rag.vector_store.api_key)
    store_of(rag.vector_store.type, server)  # before hours of embedding
    found = documents_of(ctx)
    chunks = chunks_of(found.documents, rag.chunk_size, rag.chunk_overlap)
    vectors = embedder.vectors([chunk.text for chunk in chunks], _reporter(ctx, len(chunks)))
    meta = Meta(
        store="chroma" if rag.vector_store.type == "chromadb" else rag.vector_store.type,
        collection=rag.vector_store.collection,
        embedding_model=embedder.name,
        embedding_digest=embedder.digest,
        dimension=vectors.shape[1],
        documents=len(found.documents),
        chunks=len(chunks),
        chunk_size=rag.chunk_size,
        chunk_overlap=rag.chunk_overlap,
    )
    write_index(folder, meta, chunks, vectors, server=server)
    return Built(folder, meta, embedder.embedded - before, found.warnings)


def _reporter(ctx: TaskContext, total: int) -> Callable[[int], None]:
    return lambda done: ctx.progress.update(done, total, "passages")


def _inner(path: str | None) -> Path:
    """Where the index lies inside the run folder; nothing is written outside of it."""
    parts = [part for part in (path or "index").replace("\\", "/").split("/") if part not in ("", ".")]
    if ".." in parts or not parts:
        raise ExecutorError(
            f"rag.vector_store.path is {path!r}, which names no folder inside the run folder.",
            "Write a name such as index.",
        )
    return Path(*parts)
