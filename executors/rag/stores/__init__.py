"""What keeps the vectors of an index: one small interface, one file for each kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from executors.base import ExecutorError

if TYPE_CHECKING:
    import numpy


class OpenStore(Protocol):
    """Vectors that can be asked."""

    count: int
    """Vectors in it."""
    dimension: int
    """Numbers in a vector."""

    def nearest(self, vectors: numpy.ndarray, count: int) -> list[list[tuple[int, float]]]:
        """Return, for each vector, positions and cosine similarities of the nearest ones, best first."""
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...


class Store(Protocol):
    """A way to keep vectors in a folder."""

    def write(self, folder: Path, collection: str, vectors: numpy.ndarray, texts: Sequence[str]) -> None:
        """Write all vectors, of length 1, into an empty folder."""
        ...

    def open(self, folder: Path, collection: str) -> OpenStore:
        """Open a folder that `write` filled; raises ExecutorError when it is damaged."""
        ...


def store_of(kind: str) -> Store:
    """Return the store of `rag.vector_store.type`; raises ExecutorError for one that is not there."""
    if kind in ("chroma", "chromadb"):
        from executors.rag.stores.chroma import ChromaStore

        return ChromaStore()
    if kind == "faiss":
        from executors.rag.stores.faiss import FaissStore

        return FaissStore()
    raise ExecutorError(
        f"rag.vector_store.type {kind!r} cannot be used yet.", "Write type: chroma (embedded, the default), or faiss."
    )
