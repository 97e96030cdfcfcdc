"""Which weights passed which gate: one file for each set of weights and gate, rebuilt from results when lost.

Weights are named by the digests of their parts in the order in which they are put together: a model folder, then its
adapters. So an adapter is another thing on another base model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from mloc_dagster.files.atomic import write_text
from mloc_dagster.spec.base import Json
from mloc_dagster.store.home import Home
from mloc_dagster.store.results import RESPONSES, Envelope, read_envelope

_WHOLE = "whole"
"""File of the index, written last when it was made from results."""
Weights = tuple[str, ...]
"""Digests of the parts, in order."""


class Verdict(BaseModel):
    """What a gate said about one evaluation of one set of weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gate: str
    """`<task>/<stage>` of the evaluation."""
    rule: dict[str, Json]
    """The section `evaluation.gate` as it stood."""
    metric: str
    value: float | None
    """None when there is no such metric, or it is not a finite number."""
    other: float | None = None
    """The value that it was compared with."""
    passed: bool
    reason: str
    weights: Weights = ()
    """Empty when the evaluation does not know whose outputs it scored."""
    rows_digest: str | None = None
    """Digest of the rows that were scored; values of other rows do not compare."""
    result: str
    """`<task id>/<stage>` of the evaluation's result."""
    judged_at: str


def weights_key(weights: Weights) -> str:
    """Return one name (hex) for a set of weights."""
    return hashlib.sha256("\n".join(weights).encode()).hexdigest()


def verdict_of(envelope: Envelope) -> Verdict | None:
    """Return the verdict that an evaluation's result carries, or None when it has no gate."""
    found = envelope.metadata.get("gate")
    return Verdict.model_validate(found) if isinstance(found, dict) else None


class Evaluations:
    """Verdicts by weights and gate."""

    def __init__(self, home: Home) -> None:
        self._folder = home.index / "evaluations"
        self._results = home.results

    def record(self, verdict: Verdict) -> None:
        """Remember a verdict; one of the same gate on the same weights that is newer stays."""
        if not self._is_whole():
            self.rebuild()
        self._note(verdict)

    def _note(self, verdict: Verdict) -> None:
        if not verdict.weights:
            return
        path = self._path(verdict.weights, verdict.gate)
        before = _read(path)
        if before is None or before.judged_at <= verdict.judged_at:
            write_text(path, verdict.model_dump_json(indent=1) + "\n")

    def of(self, weights: Weights) -> tuple[Verdict, ...]:
        """Return the latest verdict of each gate on exactly these weights, the newest first."""
        if not self._is_whole():
            self.rebuild()
        folder = self._folder / weights_key(weights)
        found = [verdict for path in folder.glob("*/*.json") if (verdict := _read(path)) and verdict.weights == weights]
        return tuple(sorted(found, key=lambda verdict: verdict.judged_at, reverse=True))

    def by(self, gate: str, weights: Weights) -> Verdict | None:
        """Return the latest verdict of one gate on exactly these weights, or None."""
        return next((verdict for verdict in self.of(weights) if verdict.gate == gate), None)

    def rebuild(self) -> int:
        """Record the verdicts of all results again; returns how many there were."""
        found = list(_verdicts(self._results))
        for verdict in found:
            self._note(verdict)
        write_text(self._folder / _WHOLE, "")
        return len(found)

    def _is_whole(self) -> bool:
        """Whether all results have been looked at since the index was made."""
        return (self._folder / _WHOLE).is_file()

    def _path(self, weights: Weights, gate: str) -> Path:
        task, _, stage = gate.partition("/")
        return self._folder / weights_key(weights) / task / f"{stage}.json"


def _verdicts(results: Path) -> Iterator[Verdict]:
    for path in results.glob(f"*/*/{RESPONSES}"):
        try:
            verdict = verdict_of(read_envelope(path))
        except (OSError, ValueError):  # not written by us
            continue
        if verdict is not None:
            yield verdict


def _read(path: Path) -> Verdict | None:
    try:
        return Verdict.model_validate_json(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
