"""One index for all shards of a stage: made of its own documents once, before they begin."""

from __future__ import annotations

from executors.context import TaskContext
from executors.rag.embedding import Embedder
from executors.rag.indexing import build_index
from mloc_dagster.spec.stage import StageSpec

Prepared = tuple[StageSpec, tuple[str, ...]]
"""The stage as its shards get it, and warnings."""


def with_index(ctx: TaskContext) -> Prepared:
    """Index the documents of a stage, if it has some; its shards then name the index."""
    rag = ctx.spec.rag
    if rag.documents is None:
        return ctx.spec, ()
    built = build_index(ctx, Embedder(ctx))
    store = rag.vector_store.model_copy(update={"path": str(built.folder)})
    named = rag.model_copy(update={"documents": None, "vector_store": store})
    return ctx.spec.model_copy(update={"rag": named}), built.warnings
