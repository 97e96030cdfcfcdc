"""`rag_search`: the passages of an index that an earlier stage, a path or the stage's own documents give."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

from executors.context import TaskContext
from executors.rag.retrieval import opened_index
from executors.rag.search import Hit

Search = Callable[[str], list[Hit]]


@contextmanager
def searching(ctx: TaskContext) -> Iterator[tuple[Search, tuple[str, ...]]]:
    """Open the index of the stage for all items, one search at a time; yields warnings of its documents too."""
    lock = threading.Lock()
    with opened_index(ctx) as opened:

        def search(query: str) -> list[Hit]:
            with lock:
                return opened.searcher.hits([query])[0]

        yield search, opened.warnings


def rag_search(search: Search) -> Callable[..., str]:
    """Return the tool that searches the index."""

    def find(query: Annotated[str, "What to look for, as a question or in key words"]) -> str:
        """Search the documents; returns numbered passages, best first, each with the name of its document."""
        hits = search(query)
        parts = [f"[{number}] ({hit.chunk.document}) {hit.chunk.text}" for number, hit in enumerate(hits, start=1)]
        return "\n\n".join(parts) or f"No passage fits {query!r}."

    return find
