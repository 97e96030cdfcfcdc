"""The contract of an executor: what it is, what it returns, how it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from mloc_dagster.spec.base import Json

if TYPE_CHECKING:
    from executors.context import TaskContext


class Result(BaseModel):
    """What a stage gives back.

    `payload` becomes `result` of the envelope (SPEC §12), `metrics` are final numbers, `metadata` says how the work
    was done (engine, digests, warnings).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    payload: dict[str, Json]
    metrics: dict[str, float] = {}
    metadata: dict[str, Json] = {}


class ExecutorError(Exception):
    """A fault that a person can mend: what is wrong with the value seen, and the way out. Shown without traceback."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(f"{what}\n{hint}" if hint else what)
        self.what = what
        self.hint = hint


class Exhausted(ExecutorError):
    """Work that failed for no fault of the user's and has had all its attempts within the stage."""


class Interrupted(Exception):
    """The work was asked to stop and has stored what it needs to go on later."""


@runtime_checkable
class Executor(Protocol):
    """One task type. Classes are found by name through the entry points of the group `mloc.executors`."""

    name: ClassVar[str]
    """The `taskType` of the language."""
    inline: ClassVar[bool]
    """Light work (milliseconds, no heavy library): it may run in the step's own process."""
    uses: ClassVar[frozenset[str]]
    """Patterns of the keys of `spec` that it reads, such as `model.*` or `plugin.*`."""
    section: ClassVar[type[BaseModel] | None]
    """Typed form of `spec.plugin`, or None when it reads none."""

    def run(self, ctx: TaskContext) -> Result:
        """Do the work. Raises ExecutorError for faults of the user, Interrupted after `ctx.stop` was set."""
        ...
