"""`rag_search`: the passages of an index that an earlier stage, a path or the stage's own documents give."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

from executors.context import TaskContext
from executors.rag.embedding import Embedder
from executors.rag.index import open_index
from executors.rag.reranking import Reranker
from executors.rag.retrieval import index_folder
from executors.rag.search import Hit, Searcher
from executors.rag.stores import Server

Search = Callable[[str], list[Hit]]


@contextmanager
def opened_index(ctx: TaskContext) -> Iterator[tuple[Search, tuple[str, ...]]]:
    """Open the index of the stage for all items, one search at a time; yields warnings of its documents too."""
    rag, embedder, lock = ctx.spec.rag, Embedder(ctx), threading.Lock()
    reranker = Reranker(ctx) if rag.search.rerank_model else None
    folder, warnings = index_folder(ctx, embedder)
    opened = open_index(
        folder,
        ctx.out / ".cache" / "index",
        embedding_digest=embedder.digest,
        collection=rag.vector_store.collection,
        server=Server(rag.vector_store.url, rag.vector_store.api_key),
    )
    with opened as index:
        searcher = Searcher(index, embedder, rag.search, reranker)

        def search(query: str) -> list[Hit]:
            with lock:
                return searcher.hits([query])[0]

        yield search, warnings


def rag_search(search: Search) -> Callable[..., str]:
    """Return the tool that searches the index."""

    def find(query: Annotated[str, "What to look for, as a question or in key words"]) -> str:
        """Search the documents; returns numbered passages, best first, each with the name of its document."""
        hits = search(query)
        parts = [f"[{number}] ({hit.chunk.document}) {hit.chunk.text}" for number, hit in enumerate(hits, start=1)]
        return "\n\n".join(parts) or f"No passage fits {query!r}."

    return find
