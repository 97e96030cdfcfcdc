"""FAISS: one file of vectors that are compared with every query exactly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.base import ExecutorError

if TYPE_CHECKING:
    import numpy


class FaissStore:
    """An inner-product index of vectors of length 1, so that its scores are cosine similarities."""

    def __init__(self) -> None:
        """Raises ExecutorError when faiss is not installed."""
        self._faiss = _faiss()

    def write(self, folder: Path, collection: str, vectors: numpy.ndarray, texts: Sequence[str]) -> None:
        """Write all vectors into one file."""
        index = self._faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        folder.mkdir(parents=True, exist_ok=True)
        self._faiss.write_index(index, str(folder / f"{collection}.faiss"))

    def open(self, folder: Path, collection: str) -> OpenFaiss:
        """Read the file; raises ExecutorError when it is missing or damaged."""
        file = folder / f"{collection}.faiss"
        try:
            return OpenFaiss(self._faiss.read_index(str(file)))
        except RuntimeError as error:
            names = ", ".join(sorted(path.stem for path in folder.glob("*.faiss"))) or "none"
            raise ExecutorError(
                f"The index has no readable collection {collection!r}: {error}.", f"Collections: {names}."
            ) from error


class OpenFaiss:
    """An index that is in memory."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self.count: int = index.ntotal
        self.dimension: int = index.d

    def nearest(self, vectors: numpy.ndarray, count: int) -> list[list[tuple[int, float]]]:
        """Positions and cosine similarities of the nearest vectors, best first."""
        scores, positions = self._index.search(vectors, min(count, self.count))
        return [
            [(int(position), float(score)) for position, score in zip(*row, strict=True)]
            for row in zip(positions, scores, strict=True)
        ]

    def close(self) -> None:
        """Free the vectors."""
        self._index.reset()


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise ExecutorError(
            "rag.vector_store.type is faiss, and faiss is not installed.", "Run: pip install faiss-cpu"
        ) from None
    return faiss
