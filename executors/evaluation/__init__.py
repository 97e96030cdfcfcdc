"""`evaluation`: scores of earlier stages' items, or of a model on rows of data."""

from __future__ import annotations

from executors.base import ExecutorError, Result
from executors.context import TaskContext
from executors.evaluation.candidates import score_candidates
from mloc_dagster.spec.stage import StageSpec

_DATA = (
    "url", "dataset_name", "config_name", "name", "revision", "split", "max_samples", "shuffle", "seed", "jsonl.*",
    "prompts", "preferences", "prompt_column", "response_column", "chosen_column", "rejected_column", "text_field",
    "separator", "prompt_template", "source.*",
)  # fmt: skip


class EvaluationExecutor:
    """`evaluation`: compares candidates row by row, or scores the stage's model."""

    name = "evaluation"
    inline = False
    uses = frozenset({
        "evaluation.*", "model.source.*", "model.config.*", "model.adapters", "model.transformers.*", "checkpoint.*",
        "reward_model.*", "enforce_cpu", *(f"data.{key}" for key in _DATA),
    })  # fmt: skip
    section = None

    @staticmethod
    def loads_torch(spec: StageSpec) -> bool:
        """Whether a model is scored, or one scores."""
        return spec.evaluation is not None and (spec.evaluation.candidates is None or spec.reward_model is not None)

    def run(self, ctx: TaskContext) -> Result:
        """Score what the stage names. Raises ExecutorError for whatever cannot be scored."""
        evaluation = ctx.spec.evaluation
        if evaluation is None:
            raise ExecutorError("spec.evaluation is missing.", "Give candidates: {name: ${stage.result.items}}.")
        if evaluation.candidates is not None:
            return score_candidates(ctx, evaluation)
        from executors.evaluation.rows_of_data import score_data

        return score_data(ctx, evaluation)
