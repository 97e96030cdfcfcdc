"""Which stages' weights the gate of an evaluation is about, as the references of the task file tell."""

from __future__ import annotations

from collections.abc import Sequence

from mloc_dagster.spec import references as refs
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.evaluation import REWARD_METRICS
from mloc_dagster.spec.task_types import known
from mloc_dagster.spec.taskfile import Stage


def judged_stages(stages: Sequence[Stage], evaluation: Stage) -> tuple[str, ...]:
    """Return the names of the training stages whose weights the gate of `evaluation` judges, as they stand.

    These are the training stages that the model of the judged candidate (or of the evaluation itself) refers to.
    """
    section = evaluation.spec.evaluation
    if section is None or section.gate is None:
        return ()
    if section.candidates is None:
        own = "reward_model" if judges_reward_model(evaluation) else None
        return _trained(stages, evaluation, (own,) if own else ("model", "checkpoint"))
    source = candidate_stage(evaluation)
    made_by = next((stage for stage in stages if stage.name == source), None)
    return _trained(stages, made_by, ("model", "checkpoint")) if made_by else ()


def gates_on(stages: Sequence[Stage], name: str) -> tuple[Stage, ...]:
    """Return the evaluation stages with a gate on the weights of the stage `name`."""
    return tuple(stage for stage in stages if name in judged_stages(stages, stage))


def judges_reward_model(evaluation: Stage) -> bool:
    """Whether the weights under judgement are those of `reward_model`, scored on rows of data."""
    section, reward = evaluation.spec.evaluation, evaluation.raw.get("reward_model")
    gate = section.gate if section else None
    return bool(gate and section and section.candidates is None and reward and gate.metric in REWARD_METRICS)


def candidate_stage(evaluation: Stage) -> str | None:
    """Return the stage whose items the judged candidate is; None for items that do not come whole from a stage."""
    section = evaluation.spec.evaluation
    if section is None or section.candidates is None or section.judged is None:
        return None
    body = refs.whole(section.candidates.get(section.judged))
    return refs.head(body) if body else None


def _trained(stages: Sequence[Stage], stage: Stage, sections: tuple[str, ...]) -> tuple[str, ...]:
    named = {head for section in sections for head in _heads(stage.raw.get(section))}
    trains = {name for name, kind in known().items() if kind.trains}
    return tuple(other.name for other in stages if other.name in named and other.spec.task_type in trains)


def _heads(value: Json) -> set[str]:
    return {head for _, body in refs.find(value) if (head := refs.head(body))}
