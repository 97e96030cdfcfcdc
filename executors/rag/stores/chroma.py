"""Chroma, embedded: a folder with its own database."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.base import ExecutorError

if TYPE_CHECKING:
    import numpy


class ChromaStore:
    """One collection with cosine distance; the id of a vector is its position."""

    def write(self, folder: Path, collection: str, vectors: numpy.ndarray, texts: Sequence[str]) -> None:
        """Write all vectors with their texts, so that any Chroma client can read the collection."""
        client = _client(folder)
        try:
            made = client.create_collection(
                collection, embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
            )
            step = client.get_max_batch_size()
            for first in range(0, len(texts), step):
                part = range(first, min(first + step, len(texts)))
                made.add(
                    ids=[str(position) for position in part],
                    embeddings=vectors[part.start : part.stop],
                    documents=[texts[position] for position in part],
                )
        finally:
            client.close()

    def open(self, folder: Path, collection: str) -> OpenChroma:
        """Open the collection; raises ExecutorError naming those that are there."""
        from chromadb.errors import ChromaError

        client = _client(folder)
        try:
            return OpenChroma(client, client.get_collection(collection, embedding_function=None))
        except ChromaError as error:
            names = ", ".join(sorted(found.name for found in client.list_collections())) or "none"
            client.close()
            raise ExecutorError(
                f"The index has no collection {collection!r} ({error}).", f"Collections: {names}."
            ) from error


class OpenChroma:
    """A collection that is open."""

    def __init__(self, client: Any, collection: Any) -> None:
        self._client, self._collection = client, collection
        self.count: int = collection.count()
        first = collection.get(limit=1, include=["embeddings"])["embeddings"]
        self.dimension = len(first[0]) if len(first) else 0

    def nearest(self, vectors: numpy.ndarray, count: int) -> list[list[tuple[int, float]]]:
        """Positions and cosine similarities of the nearest vectors, best first."""
        found = self._collection.query(
            query_embeddings=vectors, n_results=min(count, self.count), include=["distances"]
        )
        return [
            [(int(key), 1.0 - float(distance)) for key, distance in zip(keys, distances, strict=True)]
            for keys, distances in zip(found["ids"], found["distances"], strict=True)
        ]

    def close(self) -> None:
        """Let go of the files."""
        self._client.close()


def _client(folder: Path) -> Any:
    import chromadb
    from chromadb.config import Settings

    return chromadb.PersistentClient(str(folder), settings=Settings(anonymized_telemetry=False))
