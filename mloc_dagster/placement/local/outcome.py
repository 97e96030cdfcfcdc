"""What a step is given and what it leaves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_dagster.placement.failures.cause import Cause
from mloc_dagster.placement.inventory import Device
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.task_types import known
from mloc_dagster.spec.taskfile import Stage
from mloc_dagster.store.evaluations import verdict_of
from mloc_dagster.store.home import Home
from mloc_dagster.store.results import RESPONSES, Envelope

if TYPE_CHECKING:
    from mloc_dagster.placement.seats import Seats

_NOT_FINITE = ("NaN", "Infinity", "-Infinity")
"""How a result writes numbers that JSON has no form for."""


class StepFailed(Exception):
    """A step that did not succeed; the message is for people, the cause decides whether it is tried again.

    `again`: False when all further attempts were made within the step.
    """

    def __init__(self, message: str, cause: Cause, *, again: bool = True) -> None:
        super().__init__(message)
        self.cause, self.again = cause, again


class StoreUnknown(StepFailed):
    """The artifact store does not tell what earlier runs have left there."""


class StepCancelled(Exception):
    """A step that was ended on request; what it had stored is continued by the next attempt."""


@dataclass(frozen=True)
class RunInfo:
    """The run that a step belongs to. `task_id` stays the same when a task is tried again."""

    run_id: str
    task_id: str
    home: Home
    fresh: bool
    on_cpu: bool
    cancelled: Callable[[], bool]
    earlier: frozenset[str] = frozenset()
    """Ids of the runs that this one goes on from; what they finished is not done again, fresh or not."""
    granted: tuple[Device, ...] | None = None
    """GPUs that the run holds; None: it was started without the queue, and takes what this machine has."""
    lock: int | None = None
    """File descriptor of the run's lock: work that keeps it open holds the run, also without the run's worker."""
    seats: Seats | None = None
    """Where workers other than this machine are declared: what gives each stage its worker."""


@dataclass(frozen=True)
class Check:
    """One asset check: its name, whether it passed, and what was seen."""

    name: str
    passed: bool
    metadata: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class StepOutcome:
    """What a step leaves: values for people, the version of its data, checks, and the task it was reused from."""

    metadata: dict[str, Json]
    data_version: str
    checks: tuple[Check, ...] = ()
    reused_from: str | None = None
    log_history: tuple[dict[str, Json], ...] = ()
    folder: Path | None = None


def outcome_of(stage: Stage, folder: Path, envelope: Envelope, reused_from: str | None) -> StepOutcome:
    """Tell people what a result says: metadata, a sample of its rows, checks."""
    result, kind = envelope.result, known()[stage.spec.task_type]
    metadata: dict[str, Json] = {"folder": str(folder), "responses": str(folder / RESPONSES)}
    metadata.update(
        {key: value for key, value in envelope.metadata.items() if isinstance(value, (str, int, float, bool))}
    )
    for group in ("metrics", "usage"):
        values = envelope.metadata.get("metrics") if group == "metrics" else result.get("usage")
        if isinstance(values, dict):
            metadata.update(
                {f"{group}/{k}": v for k, v in values.items() if isinstance(v, (int, float)) and math.isfinite(v)}
            )
    if isinstance(result.get("model"), str):
        metadata["model"] = result["model"]
    if isinstance(result.get("items"), list):
        metadata["rows"] = len(result["items"])
        metadata["sample"] = [_sample(item) for item in result["items"][:5] if isinstance(item, dict)]
    if isinstance(result.get("rows"), list):
        metadata["rows"] = result.get("rows_total", len(result["rows"]))
        metadata["sample"] = [_clipped(row) for row in result["rows"][:5] if isinstance(row, dict)]
    if reused_from:
        metadata["reused_from"] = reused_from
    history = tuple(entry for entry in result.get("log_history") or () if isinstance(entry, dict))
    checks = [_artifacts_check(folder), *(_training_checks(result, history) if kind.trains else ())]
    checks.extend(_gate_checks(envelope))
    checks.extend(_retrieval_checks(result))
    return StepOutcome(metadata, str(envelope.metadata["digest"]), tuple(checks), reused_from, history, folder)


def _sample(item: dict[str, Json]) -> dict[str, Json]:
    return {key: str(item.get(key))[:200] for key in ("index", "prompt", "output") if key in item}


def _clipped(row: dict[str, Json]) -> dict[str, Json]:
    return {key: str(value)[:200] for key, value in row.items()}


def _gate_checks(envelope: Envelope) -> Iterator[Check]:
    verdict = verdict_of(envelope)
    if verdict is not None:
        seen = verdict.model_dump(exclude={"gate", "passed", "rule", "result"}, mode="json")
        yield Check("gate", verdict.passed, {key: value for key, value in seen.items() if value is not None})


def _retrieval_checks(result: dict[str, Json]) -> Iterator[Check]:
    """hit@k and MRR of a retrieval that knows the right documents, held against their bounds."""
    seen = result.get("retrieval")
    if isinstance(seen, dict):
        yield Check("retrieval", seen.get("passed") is True, {k: v for k, v in seen.items() if k != "passed"})


def _artifacts_check(folder: Path) -> Check:
    entries = json.loads((folder / "manifest.json").read_text("utf-8"))["entries"]
    missing = [entry["name"] for entry in entries if entry["status"] == "missing" and entry.get("required", True)]
    return Check("artifacts_present", not missing, {"missing": missing, "entries": len(entries)})


def _training_checks(result: dict[str, Json], history: tuple[dict[str, Json], ...]) -> Iterator[Check]:
    told = [entry["loss"] for entry in history if "loss" in entry]
    losses = [float(loss) for loss in told if isinstance(loss, (int, float)) or loss in _NOT_FINITE]
    mean = (result.get("metrics") or {}).get("train_loss")
    if not losses and isinstance(mean, (int, float)):
        losses = [mean]  # fewer steps than logging_steps
    finite = bool(losses) and all(math.isfinite(loss) for loss in losses)
    yield Check("loss_finite", finite, {"first": losses[0], "last": losses[-1]} if losses else {})
    if isinstance(result.get("weights_changed"), bool):
        yield Check("weights_changed", result["weights_changed"], {"weights_digest": str(result.get("weights_digest"))})
