"""What keeps the vectors of an index: one small interface, one file for each kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    """A way to keep vectors in a folder, or on a server that files of the folder name."""

    def write(self, folder: Path, collection: str, vectors: numpy.ndarray, texts: Sequence[str]) -> None:
        """Write all vectors, of length 1; the folder is empty."""
        ...

    def open(self, folder: Path, collection: str) -> OpenStore:
        """Open a folder that `write` filled; raises ExecutorError when it is damaged."""
        ...


@dataclass(frozen=True)
class Server:
    """Address and key of a server that keeps the vectors."""

    url: str | None = None
    api_key: str | None = None


def store_of(kind: str, server: Server | None = None) -> Store:
    """Return the store of `rag.vector_store.type`; raises ExecutorError for one that is not there."""
    if kind in ("chroma", "chromadb"):
        from executors.rag.stores.chroma import ChromaStore

        return ChromaStore()
    if kind == "faiss":
        from executors.rag.stores.faiss import FaissStore

        return FaissStore()
    if kind == "qdrant":
        from executors.rag.stores.qdrant import QdrantStore

        return QdrantStore(server.url, server.api_key) if server else QdrantStore()
    raise ExecutorError(
        f"rag.vector_store.type {kind!r} is not known.", "Write type: chroma (embedded, the default), faiss or qdrant."
    )
