"""A loaded task file: its identity and its stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_dagster.spec.base import Json
from mloc_dagster.spec.faults import Fault
from mloc_dagster.spec.schedule import Schedule, Triggers
from mloc_dagster.spec.workflow import WorkflowConfig

if TYPE_CHECKING:
    from mloc_dagster.spec.stage import StageSpec


@dataclass(frozen=True)
class Stage:
    """One stage. `raw` is its canonical JSON form with references unresolved; `spec` is the typed view of it.

    Keys whose value is a reference that cannot be typed yet are absent from `spec` and listed in `deferred`.
    """

    name: str
    depends_on: tuple[str, ...]
    spec: StageSpec
    raw: dict[str, Json]
    deferred: tuple[str, ...] = ()
    line: int = 1

    def is_deferred(self, dotted: str) -> bool:
        """Whether the key, or something below it, waits for a reference to be resolved."""
        return any(key == dotted or key.startswith(f"{dotted}.") for key in self.deferred)


@dataclass(frozen=True)
class TaskFile:
    """One YAML task file, valid as a whole."""

    name: str
    owner: str
    project: str
    description: str
    kind: str
    stages: tuple[Stage, ...]
    workflow: WorkflowConfig
    requires: tuple[str, ...]
    """Other tasks (names or ids) whose latest successful results are used."""
    text: str
    digest: str
    """SHA-256 hex of the text and of the folder that its relative paths start from."""
    path: Path | None = None
    warnings: tuple[Fault, ...] = field(default=())
    schedule: Schedule | None = None
    triggers: Triggers | None = None

    def stage(self, name: str) -> Stage:
        """Return the stage called `name`; KeyError when there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def ancestors(self, name: str) -> frozenset[str]:
        """Names of all stages that the stage depends on, directly or not."""
        found: set[str] = set()
        waiting = list(self.stage(name).depends_on)
        while waiting:
            parent = waiting.pop()
            if parent not in found:
                found.add(parent)
                waiting.extend(self.stage(parent).depends_on)
        return frozenset(found)
