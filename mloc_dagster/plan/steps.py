"""A plan: the steps of one task and what each needs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from mloc_dagster.spec.faults import Fault
from mloc_dagster.spec.load import TaskFile
from mloc_dagster.spec.model import ModelSource
from mloc_dagster.spec.taskfile import Stage

StepKind = Literal["model", "dataset", "stage", "publish", "final_output"]
OF_TASK: frozenset[StepKind] = frozenset({"stage", "publish", "final_output"})
"""Steps that belong to one task; the others are shared by all that name the same source."""


@dataclass(frozen=True)
class Step:
    """One step. `key` is unique in the plan and equals the asset key joined by `/`."""

    kind: StepKind
    asset_key: tuple[str, ...]
    depends_on: tuple[str, ...] = ()
    """Keys of the steps whose results this one reads or waits for."""
    stage: Stage | None = None
    """The stage that it runs or publishes, the first that names the source, or the last that the output tells of."""
    source: str = ""
    """What is pulled or where it is published, for people to read."""
    model: ModelSource | None = None
    """The model that a step of kind `model` pulls."""

    @property
    def key(self) -> str:
        """The asset key as one text."""
        return "/".join(self.asset_key)

    @property
    def op_name(self) -> str:
        """A name that Dagster accepts for the op of this step."""
        return re.sub(r"[^A-Za-z0-9_]", "_", "__".join(self.asset_key))


@dataclass(frozen=True)
class Plan:
    """All steps of one task file in an order in which they can run."""

    task: TaskFile
    steps: tuple[Step, ...]
    warnings: tuple[Fault, ...] = field(default=())

    @cached_property
    def by_key(self) -> dict[str, Step]:
        """Steps by their key."""
        return {step.key: step for step in self.steps}

    def stage_step(self, stage: str) -> Step:
        """Return the step that runs the stage."""
        return next(step for step in self.steps if step.kind == "stage" and step.stage and step.stage.name == stage)
