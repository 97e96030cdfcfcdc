"""Vectors of texts by a sentence-transformers model; a text that was embedded before is not embedded again."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.base import ExecutorError, Interrupted
from executors.context import TaskContext

if TYPE_CHECKING:
    import numpy

_AT_ONCE = 500
"""Keys of one question to SQLite, which takes 999 values at most."""
_BATCHES_A_STEP = 8


class Embedder:
    """The model of `rag.embedding`; it is loaded when the first text needs it."""

    def __init__(self, ctx: TaskContext) -> None:
        """Raises ExecutorError when the stage names no model or it is not there."""
        embedding = ctx.spec.rag.embedding
        if embedding is None or ctx.embedding_path is None:
            raise ExecutorError("rag.embedding is missing.", "Name a model: rag.embedding: {model: <org>/<name>}.")
        self.name = embedding.model
        self.digest = model_digest(ctx.embedding_path)
        self.embedded = 0
        """Texts that the model really embedded."""
        self._folder, self._batch = ctx.embedding_path, embedding.batch_size
        self._device = "cuda" if ctx.devices and not ctx.spec.enforce_cpu else "cpu"
        self._cache = (ctx.cache or ctx.out / ".cache") / "vectors" / f"{self.digest.removeprefix('sha256:')}.sqlite"
        self._stop = ctx.stop
        self._model: Any = None

    def vectors(self, texts: Sequence[str], report: Callable[[int], None] = lambda done: None) -> numpy.ndarray:
        """Return a float32 array (texts, dimension), rows of length 1.

        `report` gets the number of finished texts. What is done survives a stop, which raises Interrupted.
        """
        keys = [hashlib.sha256(text.encode()).digest() for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True)}
        with _vectors_at(self._cache) as cache:
            found = cache.read(list(missing))
            missing = {key: text for key, text in missing.items() if key not in found}
            report(len(texts) - len(missing))
            step = self._batch * _BATCHES_A_STEP
            for first in range(0, len(missing), step):
                if self._stop.is_set():
                    raise Interrupted
                part = dict(list(missing.items())[first : first + step])
                made = self._embed(list(part.values()))
                new = {key: vector.tobytes() for key, vector in zip(part, made, strict=True)}
                cache.write(new)
                found |= new
                report(len(texts) - len(missing) + first + len(part))
        return _array([found[key] for key in keys])

    def _embed(self, texts: list[str]) -> numpy.ndarray:
        import numpy

        if self._model is None:
            self._model = self._load()
        made = self._model.encode(
            texts, batch_size=self._batch, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
        )
        if not numpy.isfinite(made).all():
            raise ExecutorError(f"The embedding model {self.name} gave values that are no numbers.", "Use another one.")
        self.embedded += len(texts)
        return made.astype("float32")

    def _load(self) -> Any:
        from sentence_transformers import SentenceTransformer

        try:
            return SentenceTransformer(str(self._folder), device=self._device, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ExecutorError(
                f"rag.embedding.model {self.name} cannot be loaded: {error}.", "Name a sentence-transformers model."
            ) from error


def model_digest(folder: Path) -> str:
    """Return `sha256:<hex>` over names and bytes of all files: pooling and tokenizer count as much as the weights."""
    whole = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with file.open("rb") as handle:
            line = f"{file.relative_to(folder)} {hashlib.file_digest(handle, 'sha256').hexdigest()}\n"
        whole.update(line.encode())
    return f"sha256:{whole.hexdigest()}"


def _array(rows: list[bytes]) -> numpy.ndarray:
    import numpy

    return numpy.stack([numpy.frombuffer(row, dtype="float32") for row in rows])


class _Vectors:
    """Vectors of one model by the SHA-256 of their text."""

    def __init__(self, base: sqlite3.Connection) -> None:
        self._base = base
        base.execute("PRAGMA journal_mode=WAL")
        base.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID")

    def read(self, keys: list[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for first in range(0, len(keys), _AT_ONCE):
            part = keys[first : first + _AT_ONCE]
            marks = ",".join("?" * len(part))
            found.update(self._base.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", part))
        return found

    def write(self, vectors: dict[bytes, bytes]) -> None:
        with self._base:
            self._base.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", vectors.items())


@contextmanager
def _vectors_at(path: Path) -> Iterator[_Vectors]:
    path.parent.mkdir(parents=True, exist_ok=True)
    base = sqlite3.connect(path, timeout=60)
    try:
        yield _Vectors(base)
    except sqlite3.DatabaseError as error:
        raise ExecutorError(f"The vectors kept in {path} cannot be used: {error}.", "Remove this file.") from error
    finally:
        base.close()
