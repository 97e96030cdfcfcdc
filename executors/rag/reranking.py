"""A cross-encoder of sentence-transformers orders the passages that a search found again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from executors.base import ExecutorError
from executors.context import TaskContext


class Reranker:
    """The model of `rag.search.rerank_model`; it is loaded when the first passages need it."""

    def __init__(self, ctx: TaskContext) -> None:
        """Raises ExecutorError when the stage names no model or it is not there."""
        model = ctx.spec.rag.search.rerank_model
        if model is None or ctx.reranker_path is None:
            raise ExecutorError(
                "rag.search.rerank_model is missing.", "Name a model: rag.search: {rerank_model: <org>/<name>}."
            )
        self.name = model.model
        self._folder, self._batch = ctx.reranker_path, model.batch_size
        self._device = "cuda" if ctx.devices and not ctx.spec.enforce_cpu else "cpu"
        self._model: Any = None

    def scores(self, query: str, passages: Sequence[str]) -> list[float]:
        """Return how well each passage answers the query, by the model's own activation; higher is better.

        Raises ExecutorError when the model is none that gives one finite number for each pair.
        """
        import numpy

        if not passages:
            return []
        if self._model is None:
            self._model = self._load()
        pairs = [(query, passage) for passage in passages]
        made = self._model.predict(pairs, batch_size=self._batch, show_progress_bar=False)
        if not numpy.isfinite(made).all():
            raise ExecutorError(
                f"rag.search.rerank_model {self.name} gave scores that are no numbers.", "Use another one."
            )
        return [float(score) for score in made]

    def _load(self) -> Any:
        from sentence_transformers import CrossEncoder

        try:
            model = CrossEncoder(str(self._folder), device=self._device, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ExecutorError(
                f"rag.search.rerank_model {self.name} cannot be loaded: {error}.",
                "Name a cross-encoder: a model for sequence classification with one label.",
            ) from error
        if model.num_labels != 1:
            raise ExecutorError(
                f"rag.search.rerank_model {self.name} gives {model.num_labels} numbers for a passage, not one score.",
                "Name a cross-encoder: a model for sequence classification with one label.",
            )
        return model
