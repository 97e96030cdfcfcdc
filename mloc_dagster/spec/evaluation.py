"""`spec.evaluation`: scores of earlier stages' items or of a model, and the gate that they must pass."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from mloc_dagster.spec.base import Json, Section

_LATER = {"llm_judge": "models do not judge yet", "lm_eval": "the lm-eval harness is not there yet"}
TEXT_METRICS = frozenset({"exact_match", "f1", "rouge_l", "contains"})
"""Compare an output with a reference; 0 to 1, higher is better."""
REWARD_METRICS = frozenset({"reward", "win_rate"})
"""Can be read from what `reward_model` gives."""
LOWER_IS_BETTER = frozenset({"perplexity"})


def _there(value: Json) -> Json:
    """Refuse the metrics that are still to come by what they are, not as a typing mistake."""
    if isinstance(value, str) and value in _LATER:
        raise ValueError(f"{_LATER[value]}; score with reward and reward_model, or with win_rate")
    return value


Metric = Annotated[
    Literal["exact_match", "f1", "rouge_l", "contains", "perplexity", "reward", "win_rate"], BeforeValidator(_there)
]


class Gate(Section):
    """A bound that one metric must keep. Weights that do not keep it are not published."""

    metric: Metric
    """The metric that counts; one of evaluation.metrics."""
    candidate: str | None = None
    """The candidate whose weights are judged; the one that is not the baseline unless given."""
    min: float | None = None
    """Lowest value that passes; with against, the lowest difference."""
    max: float | None = None
    """Highest value that passes; with against, the highest difference."""
    against: Literal["value", "stage", "latest_published"] = "value"
    """What min and max bound: the metric itself, or its difference from another stage's or the published weights'."""
    stage: str | None = None
    """The candidate or earlier evaluation (against: stage), or the stage whose published weights count."""

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """Lowest and highest value (or difference) that passes; without either, no worse than the other is enough."""
        if self.min is not None or self.max is not None:
            return self.min, self.max
        return (None, 0.0) if self.metric in LOWER_IS_BETTER else (0.0, None)


class Evaluation(Section):
    """Scores the items of earlier stages (candidates), or a model on rows of data."""

    metrics: Annotated[list[Metric], Field(min_length=1)] = ["exact_match"]
    """exact_match, f1, rouge_l, contains: outputs against references; perplexity: of the model; reward and win_rate:
    by rewards."""
    candidates: dict[str, list[Json] | str] | None = None
    """Name of each candidate, and its items: ${stage.result.items}; without any, the stage's model is scored."""
    reference: Annotated[str, Field(pattern=r"^(metadata|item)\.[\w.]+$")] = "metadata.reference"
    """Where each item keeps the right answer, or a list of right answers."""
    preference: Annotated[str | None, Field(pattern=r"^(metadata|item)\.[\w.]+$")] = None
    """Where each item keeps the name of the candidate that people prefer, or tie; win_rate counts it."""
    baseline: str | None = None
    """The candidate that the others are compared with; the first unless given."""
    gate: Gate | None = None
    """What the weights must reach to be published."""

    @property
    def judged(self) -> str | None:
        """The candidate that the gate is about; None when there is none or no telling which."""
        if self.gate is None or not self.candidates:
            return None
        if self.gate.candidate is not None:
            return self.gate.candidate
        names = list(self.candidates)
        others = [name for name in names if name != (self.baseline or names[0])] or names
        return others[0] if len(others) == 1 else None
