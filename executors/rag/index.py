"""An index on disk: passages, their vectors, and what both were made with.

`<folder>/index.json` (Meta), `<folder>/chunks.jsonl` (one passage a line, in the order of the vectors) and
`<folder>/store/` (the vectors).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from executors.base import ExecutorError
from executors.rag.chunking import Chunk
from executors.rag.stores import OpenStore, Server, store_of
from mloc_dagster.files.atomic import new_folder, restore, write_text

if TYPE_CHECKING:
    import numpy

_META, _CHUNKS, _STORE = "index.json", "chunks.jsonl", "store"


class Meta(BaseModel):
    """What an index was made with; the counts are checked when it is opened."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str
    collection: str
    embedding_model: str
    embedding_digest: str
    dimension: int
    documents: int
    chunks: int
    chunk_size: int
    chunk_overlap: int


@dataclass(frozen=True)
class Index:
    """An index that is open: passage `n` has vector `n`."""

    meta: Meta
    chunks: list[Chunk]
    store: OpenStore


def write_index(
    folder: Path, meta: Meta, chunks: Sequence[Chunk], vectors: numpy.ndarray, server: Server | None = None
) -> None:
    """Write an index beside `folder`, check it, and put it in its place by a rename that no reader sees half done."""
    store = store_of(meta.store, server)
    with ExitStack() as swap, new_folder(folder) as partial:
        store.write(partial / _STORE, meta.collection, vectors, [chunk.text for chunk in chunks])
        lines = (json.dumps(chunk.model_dump(mode="json"), ensure_ascii=False) + "\n" for chunk in chunks)
        write_text(partial / _CHUNKS, "".join(lines))
        write_text(partial / _META, meta.model_dump_json(indent=1) + "\n")
        _check_written(store.open(partial / _STORE, meta.collection), meta)
        swap.enter_context(_locked(folder.parent, fcntl.LOCK_EX))


def _check_written(store: OpenStore, meta: Meta) -> None:
    try:
        if (store.count, store.dimension) != (meta.chunks, meta.dimension):
            raise RuntimeError(f"{meta.store} holds {store.count} vectors of {store.dimension}, not {meta}")
    finally:
        store.close()


@contextmanager
def _locked(folder: Path, kind: int) -> Iterator[None]:
    """Hold the lock of a folder, shared or exclusive; a process that is killed lets go of it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, kind)
        yield
    finally:
        os.close(handle)


@contextmanager
def open_index(
    folder: Path, scratch: Path, *, embedding_digest: str, collection: str, server: Server | None = None
) -> Iterator[Index]:
    """Open a copy of an index, since a database may write to its files even when it is only read.

    `server` gives the key of the server that keeps the vectors, and its address when that is another one now.
    Raises ExecutorError when there is none, when counts or dimensions are not those that it was written with, or when
    its vectors come from another embedding model than that of `embedding_digest`.
    """
    try:
        meta, chunks = _copied(folder, scratch)
        _check_same(folder, meta, embedding_digest, collection)
        store = store_of(meta.store, server).open(scratch, meta.collection)
        try:
            _check_counts(folder, meta, len(chunks), store)
            yield Index(meta, chunks, store)
        finally:
            store.close()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_same(folder: Path, meta: Meta, embedding_digest: str, collection: str) -> None:
    if meta.embedding_digest != embedding_digest:
        raise ExecutorError(
            f"The index in {folder} was made with the embedding model {meta.embedding_model}, and rag.embedding names "
            "another one; their vectors cannot be compared.",
            f"Write rag.embedding: {{model: {meta.embedding_model}}}, or index the documents again.",
        )
    if meta.collection != collection:
        raise ExecutorError(
            f"The index in {folder} has no collection {collection!r}.", f"Its collection is {meta.collection!r}."
        )


def _copied(folder: Path, scratch: Path) -> tuple[Meta, list[Chunk]]:
    """Read an index whole, its vectors into `scratch`: while it is written anew, the old one or the new one."""
    shutil.rmtree(scratch, ignore_errors=True)
    if not folder.parent.is_dir():
        return _meta(folder), []
    if not folder.exists():
        with _locked(folder.parent, fcntl.LOCK_EX):
            restore(folder)
    with _locked(folder.parent, fcntl.LOCK_SH):
        meta, chunks = _meta(folder), _chunks(folder)
        try:
            shutil.copytree(folder / _STORE, scratch)
        except (OSError, shutil.Error) as error:
            raise ExecutorError(f"The index in {folder} is damaged: {error}.", "Index the documents again.") from error
    return meta, chunks


def _meta(folder: Path) -> Meta:
    try:
        return Meta.model_validate_json((folder / _META).read_text("utf-8"))
    except OSError:
        what = "is not there" if not folder.exists() else f"is no index: it has no {_META}"
    except ValidationError as error:
        what = f"cannot be used: {_META} is damaged ({error.error_count()} faults)"
    raise ExecutorError(
        f"rag.vector_store.path: {folder} {what}.",
        "Name the index of a rag_indexing stage: ${<stage>.result.index_path}, or give rag.documents.",
    )


def _chunks(folder: Path) -> list[Chunk]:
    try:
        with (folder / _CHUNKS).open(encoding="utf-8") as file:
            return [Chunk.model_validate_json(line) for line in file]
    except (OSError, ValueError) as error:
        raise ExecutorError(f"The index in {folder} is damaged: {error}.", "Index the documents again.") from error


def _check_counts(folder: Path, meta: Meta, passages: int, store: OpenStore) -> None:
    seen = (passages, store.count, store.dimension)
    if seen != (meta.chunks, meta.chunks, meta.dimension):
        raise ExecutorError(
            f"The index in {folder} is damaged: it holds {passages} passages and {store.count} vectors of "
            f"{store.dimension} numbers; it was written with {meta.chunks} of {meta.dimension}.",
            "Index the documents again.",
        )
