"""The gate of an evaluation: its verdict on the weights, and the refusal to publish weights without a good one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mloc_dagster.plan.steps import Plan
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.evaluation import Evaluation, Gate
from mloc_dagster.spec.gates import candidate_stage, gates_on, judged_stages
from mloc_dagster.spec.taskfile import Stage
from mloc_dagster.store.evaluations import Evaluations, Verdict, Weights, verdict_of
from mloc_dagster.store.home import Home
from mloc_dagster.store.publications import Publication, Publications
from mloc_dagster.store.results import Envelope, read_envelope


class Refused(Exception):
    """Weights that may not be published; the message says why, and what to do."""


@dataclass(frozen=True)
class _Other:
    """What a metric is compared with: a value and the rows it comes from, or why there is none."""

    value: float | None = None
    rows_digest: str | None = None
    name: str = ""
    nothing: str = ""
    passes: bool = False
    """Whether having nothing to compare with is no fault."""


def judged(
    plan: Plan, stage: Stage, upstream: Mapping[str, Path], home: Home, envelope: Envelope, *, again: bool = True
) -> Envelope:
    """Return the result of an evaluation with the verdict of its gate in `metadata.gate`; others are left alone.

    `upstream` names the results that the stage reads. Without `again` a verdict by the same rule stays.
    """
    section = stage.spec.evaluation
    if section is None or section.gate is None:
        return envelope
    before = verdict_of(envelope)
    if before is not None and before.rule == section.gate.model_dump() and not again:
        return envelope
    verdict = _verdict(plan, stage, section, section.gate, envelope, upstream, home)
    return envelope.model_copy(update={"metadata": {**envelope.metadata, "gate": verdict.model_dump(mode="json")}})


def record(home: Home, envelope: Envelope) -> None:
    """Remember the verdict that a stored result carries, so that other runs find it."""
    verdict = verdict_of(envelope)
    if verdict is not None:
        Evaluations(home).record(verdict)


def require_passed(plan: Plan, stage: Stage, folder: Path, envelope: Envelope, home: Home) -> None:
    """Raise Refused unless the weights in a run folder passed every gate on the stage.

    What counts is the digest of the files that are about to be delivered. A destination with `requires_evaluation`
    and no gate in its own task file is content with any gate that these weights passed.
    """
    destination = stage.spec.output.destination
    gates = gates_on(plan.task.stages, stage.name)
    if not gates and not (destination and destination.requires_evaluation):
        return
    weights = _weights_on_disk(stage, folder, envelope)
    verdicts = Evaluations(home).of(weights)
    for gate in gates:
        name = f"{plan.task.name}/{gate.name}"
        found = next((verdict for verdict in verdicts if verdict.gate == name), None)
        _require(stage, weights, found, gate, name)
    if not gates and not any(verdict.passed for verdict in verdicts):
        failed = f"; {verdicts[0].gate} said: {verdicts[0].reason}" if verdicts else ""
        raise Refused(
            f"{stage.name} is not published: requires_evaluation is set, and the weights {_short(weights)} have no "
            f"passed evaluation{failed}\nRun an evaluation with a gate on these weights first"
        )


def note_publication(plan: Plan, stage: Stage, envelope: Envelope, home: Home, delivered_to: str) -> None:
    """Remember which weights were delivered, for gates that compare with the latest published ones."""
    weights = stage_weights(envelope)
    if weights:
        publication = Publication(
            stage=f"{plan.task.name}/{stage.name}",
            weights=weights,
            result=envelope.task_id,
            delivered_to=delivered_to,
            published_at=datetime.now(UTC).isoformat(),
        )
        Publications(home).record(publication)


def stage_weights(envelope: Envelope) -> Weights:
    """Return the weights that a result is about: those that a trainer made, or those that made the outputs."""
    made = envelope.metadata.get("weights_digest")
    if isinstance(envelope.metadata.get("weights"), list):
        return tuple(map(str, envelope.metadata["weights"]))
    if not isinstance(made, str):
        return ()
    if envelope.result.get("final_lora_path"):
        return (str(envelope.metadata.get("start_weights_digest")), made)
    return (made,) if envelope.result.get("final_model_path") else ()


def _verdict(
    plan: Plan, stage: Stage, section: Evaluation, gate: Gate, envelope: Envelope, upstream: Mapping[str, Path],
    home: Home,
) -> Verdict:  # fmt: skip
    key = f"{gate.metric}/{section.judged}" if section.judged else gate.metric
    value = _finite(_metrics(envelope).get(key))
    rows = envelope.metadata.get("rows_digest")
    other = _other(plan, stage, section, gate, envelope, upstream, home)
    passed, reason = _decide(gate, key, value, rows, other)
    return Verdict(
        gate=f"{plan.task.name}/{stage.name}",
        rule=gate.model_dump(),
        metric=key,
        value=value,
        other=other.value if other else None,
        passed=passed,
        reason=reason,
        weights=_judged_weights(stage, section, envelope, upstream),
        rows_digest=rows,
        result=envelope.task_id,
        judged_at=datetime.now(UTC).isoformat(),
    )


def _judged_weights(stage: Stage, section: Evaluation, envelope: Envelope, upstream: Mapping[str, Path]) -> Weights:
    if section.candidates is None:
        return stage_weights(envelope)
    source = candidate_stage(stage)
    return stage_weights(read_envelope(upstream[source])) if source and source in upstream else ()


def _other(
    plan: Plan, stage: Stage, section: Evaluation, gate: Gate, envelope: Envelope, upstream: Mapping[str, Path],
    home: Home,
) -> _Other | None:  # fmt: skip
    """What the gate compares with; None when it bounds the metric itself."""
    if gate.against == "value":
        return None
    if gate.against == "latest_published":
        return _published(plan, stage, gate, home)
    name = gate.stage or section.baseline or next(iter(section.candidates or ()), "")
    if name in (section.candidates or ()):
        value = _finite(_metrics(envelope).get(f"{gate.metric}/{name}"))
        return _Other(value, envelope.metadata.get("rows_digest"), name, f"{name} has no {gate.metric}")
    earlier = read_envelope(upstream[name])
    value = _finite(_of_earlier(_metrics(earlier), gate.metric, section.judged))
    return _Other(value, earlier.metadata.get("rows_digest"), name, f"{name} has no {gate.metric} to compare with")


def _published(plan: Plan, stage: Stage, gate: Gate, home: Home) -> _Other:
    source = gate.stage or judged_stages(plan.task.stages, stage)[0]
    latest = Publications(home).latest(f"{plan.task.name}/{source}")
    if latest is None:
        return _Other(nothing=f"nothing of {plan.task.name}/{source} is published yet", passes=True)
    gate_name = f"{plan.task.name}/{stage.name}"
    verdict = Evaluations(home).by(gate_name, latest.weights)
    name = f"the published weights {_short(latest.weights)}"
    if verdict is None or verdict.value is None or verdict.rule["metric"] != gate.metric:
        return _Other(nothing=f"{name} have no {gate.metric} by {gate_name}; evaluate them with it, or bound the value")
    return _Other(verdict.value, verdict.rows_digest, name)


def _of_earlier(metrics: Mapping[str, Json], metric: str, candidate: str | None) -> Json:
    """The metric of an earlier evaluation: its own, that of the same candidate, or of its only one."""
    for key in (metric, f"{metric}/{candidate}"):
        if key in metrics:
            return metrics[key]
    several = [value for key, value in metrics.items() if key.startswith(f"{metric}/")]
    return several[0] if len(several) == 1 else None


def _decide(gate: Gate, key: str, value: float | None, rows: str | None, other: _Other | None) -> tuple[bool, str]:
    """Whether the gate is passed, and why. A value that is missing or not finite never passes."""
    if value is None:
        return False, f"there is no finite {key}"
    if other is None:
        return _within(gate, value, f"{key} {value:.6g}")
    if other.value is None:
        return other.passes, f"{key} {value:.6g}; {other.nothing}"
    if rows != other.rows_digest:
        return False, f"{key} {value:.6g} and {other.value:.6g} of {other.name} come from different rows"
    difference = value - other.value
    what = f"{key} {value:.6g} differs from {other.value:.6g} of {other.name} by {difference:+.6g}"
    return _within(gate, difference, what)


def _within(gate: Gate, value: float, what: str) -> tuple[bool, str]:
    low, high = gate.bounds
    if low is not None and value < low:
        return False, f"{what}, below min {low:g}"
    if high is not None and value > high:
        return False, f"{what}, above max {high:g}"
    bounds = [f"min {low:g}" if low is not None else "", f"max {high:g}" if high is not None else ""]
    return True, f"{what}, within {' and '.join(filter(None, bounds))}"


def _require(stage: Stage, weights: Weights, found: Verdict | None, gate: Stage, name: str) -> None:
    head = f"{stage.name} is not published: the weights {_short(weights)}"
    if found is None:
        raise Refused(f"{head} were never judged by {name}\nRun the whole task, so that {gate.name} scores them")
    section = gate.spec.evaluation
    if section is None or section.gate is None or found.rule != section.gate.model_dump():
        raise Refused(f"{head} were judged by {name} when its gate was another one\nRun {gate.name} again")
    if not found.passed:
        raise Refused(f"{head} did not pass the gate {name}: {found.reason}\nSee its result {found.result}")


def _weights_on_disk(stage: Stage, folder: Path, envelope: Envelope) -> Weights:
    """The weights that a delivery would carry, by the files as they are now."""
    from executors.base import ExecutorError
    from executors.weights import digest

    weights = stage_weights(envelope)
    if not weights:
        raise Refused(
            f"{stage.name} is not published: its result holds no weights that an evaluation could vouch for\n"
            "Set training.save_model, or take requires_evaluation from the destination"
        )
    made = next((folder / name for name in ("final_lora", "final_model") if (folder / name).is_dir()), None)
    if made is None and (envelope.result.get("final_lora_path") or envelope.result.get("final_model_path")):
        raise Refused(f"{stage.name} is not published: its weights are gone from {folder}\nRun the stage with --fresh")
    if made is None:
        return weights
    try:
        now = digest(made)
    except ExecutorError as error:
        raise Refused(f"{stage.name} is not published: {error}") from None
    if now != weights[-1]:
        raise Refused(
            f"{stage.name} is not published: the files in {made} are not those that it made "
            f"({now} now, {weights[-1]} then)\nRun the stage with --fresh"
        )
    return weights


def _metrics(envelope: Envelope) -> Mapping[str, Json]:
    found = envelope.metadata.get("metrics")
    return found if isinstance(found, Mapping) else {}


def _finite(value: Json) -> float | None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None


def _short(weights: Weights) -> str:
    return " + ".join(part.removeprefix("sha256:")[:12] for part in weights)
