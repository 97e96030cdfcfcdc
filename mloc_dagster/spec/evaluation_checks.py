"""Checks of `spec.evaluation`: each metric has what it is computed from, and the gate can be decided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mloc_dagster.spec.data_checks import has_data
from mloc_dagster.spec.evaluation import REWARD_METRICS, TEXT_METRICS, Evaluation, Gate
from mloc_dagster.spec.faults import Fault, listing, nearest, shown
from mloc_dagster.spec.gates import judged_stages
from mloc_dagster.spec.task_types import TaskType
from mloc_dagster.spec.taskfile import Stage
from mloc_dagster.spec.tree import Mapping, Origin, path_text
from mloc_dagster.spec.typed import origin_at

_READ_BY = {"reference": TEXT_METRICS, "preference": frozenset({"win_rate"})}


def evaluation(stage: Stage, tree: Mapping, kind: TaskType, here: Origin) -> Iterator[Fault]:
    """Faults of one evaluation stage; `here` is the place of the stage as a whole."""
    section = stage.spec.evaluation
    if section is None:
        if kind.name == "evaluation" and not stage.is_deferred("evaluation"):
            way_out = "add evaluation.candidates: {name: ${stage.result.items}}"
            yield Fault(*here.key, path_text((*here.path, "evaluation")), "is missing", "", way_out)
        return
    if kind.name != "evaluation":
        return
    if stage.is_deferred("evaluation.candidates") or stage.is_deferred("evaluation.metrics"):
        if section.gate is not None:
            place = _at(tree, "evaluation", "gate")
            what = "needs candidates and metrics that are written out"
            yield Fault(*place.key, place.text, what, "", "write name: ${stage.result.items} for each candidate")
        return
    yield from _names(section, tree)
    for index, metric in enumerate(section.metrics):
        yield from _metric(stage, section, metric, _at(tree, "evaluation", "metrics", index), here)
    for key, metrics in _READ_BY.items():
        if key in tree["evaluation"] and not metrics & set(section.metrics):
            place = _at(tree, "evaluation", key)
            what = f"is read by {listing(sorted(metrics))} only"
            yield Fault(*place.key, place.text, what, "", "remove it, or add the metric to evaluation.metrics")
    if section.gate is not None:
        yield from _gate(stage, section, section.gate, tree)


def gates(stages: Sequence[Stage], trees: dict[str, Mapping]) -> Iterator[Fault]:
    """Faults of gates that need other stages to see: what they compare with must be there."""
    for stage in stages:
        section = stage.spec.evaluation
        if stage.spec.task_type == "evaluation" and section is not None and section.gate is not None:
            yield from _against(stages, stage, section, section.gate, trees[stage.name])


def _at(tree: Mapping, *path: str | int) -> Origin:
    place = origin_at(tree, path)
    assert place is not None, path
    return place


def _names(section: Evaluation, tree: Mapping) -> Iterator[Fault]:
    names = list(section.candidates or ())
    if section.candidates is not None and not names:
        place = _at(tree, "evaluation", "candidates")
        yield Fault(*place.value, place.text, "names nothing to score", "", "add a name: ${stage.result.items}")
    elif section.baseline and section.baseline not in names:
        place = _at(tree, "evaluation", "baseline")
        yield _no_candidate(section.baseline, names, place)


def _no_candidate(name: str, names: list[str], place: Origin) -> Fault:
    guess = nearest(name, names)
    way_out = f"candidates: {listing(names)}" if names else "add evaluation.candidates, or remove it"
    way_out = f"did you mean {guess}?" if guess else way_out
    return Fault(*place.value, place.text, "is not a candidate", shown(name), way_out)


def _metric(stage: Stage, section: Evaluation, metric: str, place: Origin, here: Origin) -> Iterator[Fault]:
    def fault(what: str, way_out: str) -> Fault:
        return Fault(*place.value, place.text, what, shown(metric), way_out)

    by_reward = stage.spec.reward_model is not None or stage.is_deferred("reward_model")
    if section.candidates is not None:
        if metric == "perplexity":
            yield fault("is of a model on rows of data, not of items", "score it in a stage of its own, with model")
        elif metric == "win_rate" and len(section.candidates) == 1:
            yield fault("needs a second candidate to win against", "add the baseline to evaluation.candidates")
        elif metric == "win_rate" and section.preference and len(section.candidates) > 2:
            yield fault("tells two candidates apart when it counts preferences", "keep two candidates")
        elif metric in REWARD_METRICS and not by_reward and not (metric == "win_rate" and section.preference):
            yield fault("needs rewards", "add reward_model: {identifier or type}, or for win_rate preference")
        return
    if metric in TEXT_METRICS:
        way_out = "add evaluation.candidates: {name: ${stage.result.items}}"
        yield fault("compares items of earlier stages, and there are no candidates", way_out)
        return
    if metric == "reward" and not by_reward:
        yield fault("needs rewards", "add reward_model: {identifier or type}")
    model = stage.spec.model.source or stage.spec.checkpoint.load
    model = model or stage.is_deferred("model") or stage.is_deferred("checkpoint")
    if not model and (metric == "perplexity" or (metric == "win_rate" and not by_reward)):
        yield fault("needs a model", "add model.source.identifier")
    if not has_data(stage, True) and not stage.is_deferred("data"):
        yield fault("needs rows of data", "add data.jsonl, data.dataset_name, data.prompts or data.preferences")


def _gate(stage: Stage, section: Evaluation, gate: Gate, tree: Mapping) -> Iterator[Fault]:
    place = _at(tree, "evaluation", "gate")

    def fault(key: str, what: str, way_out: str) -> Fault:
        where = _at(tree, "evaluation", "gate", key)
        return Fault(*where.value, where.text, what, shown(getattr(gate, key)), way_out)

    if stage.is_deferred("evaluation.gate"):
        yield Fault(*place.value, place.text, "cannot hold a reference", "", "write the bound itself")
        return
    if gate.metric not in section.metrics:
        way_out = f"metrics: {listing(list(section.metrics))}"
        yield fault("metric", "is not one of evaluation.metrics", way_out)
    names = list(section.candidates or ())
    if gate.candidate is not None and gate.candidate not in names:
        yield _no_candidate(gate.candidate, names, _at(tree, "evaluation", "gate", "candidate"))
    elif names and section.judged is None:
        what = "does not tell which candidate it judges"
        yield Fault(*place.key, place.text, what, "", f"add candidate: one of {listing(names)}")
    if gate.min is not None and gate.max is not None and gate.min > gate.max:
        yield fault("min", f"is above max {gate.max:g}, so nothing can pass", "swap them")
    if gate.against == "value" and gate.min is None and gate.max is None:
        yield Fault(*place.key, place.text, "has no bound", "", "add min or max")
    if gate.metric == "win_rate" and section.judged and section.judged == (section.baseline or names[0]):
        way_out = f"candidate: {next((name for name in names if name != section.judged), '…')}"
        yield Fault(*place.key, place.text, "judges the baseline, which has no win_rate", "", way_out)
    if gate.stage is not None and gate.against == "value":
        yield fault("stage", "is read with against: stage or latest_published only", "remove it, or add against")


def _against(stages: Sequence[Stage], stage: Stage, section: Evaluation, gate: Gate, tree: Mapping) -> Iterator[Fault]:
    place = _at(tree, "evaluation", "gate", "stage" if gate.stage else "against")
    by_name = {other.name: other for other in stages}
    if gate.against == "stage":
        earlier = [name for name in _ancestors(stage, by_name) if by_name[name].spec.evaluation is not None]
        choices = [*(name for name in section.candidates or () if name != section.judged), *earlier]
        if gate.stage is None and not section.candidates:
            way_out = f"add stage: one of {listing(choices)}" if choices else "add stage: an evaluation before this one"
            yield Fault(*place.value, place.text, "does not tell which stage it compares with", "", way_out)
        elif gate.stage is not None and gate.stage not in choices:
            way_out = f"there are {listing(choices)}" if choices else "add it to dependsOn"
            what = "is neither another candidate nor an evaluation before this one"
            yield Fault(*place.value, place.text, what, shown(gate.stage), way_out)
    elif gate.against == "latest_published":
        if gate.stage is None and len(judged_stages(stages, stage)) != 1:
            what = "does not tell whose published weights count, and the references do not name one training stage"
            yield Fault(*place.value, place.text, what, "", "add stage: the stage that is published")
        elif gate.stage is not None and gate.stage not in by_name:
            guess = nearest(gate.stage, list(by_name))
            way_out = f"did you mean {guess}?" if guess else f"stages here: {listing(list(by_name))}"
            yield Fault(*place.value, place.text, "names no stage of this file", shown(gate.stage), way_out)


def _ancestors(stage: Stage, by_name: dict[str, Stage]) -> list[str]:
    found: list[str] = []
    waiting = list(stage.depends_on)
    while waiting:
        name = waiting.pop(0)
        if name in by_name and name not in found:
            found.append(name)
            waiting.extend(by_name[name].depends_on)
    return found
