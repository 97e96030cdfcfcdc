"""`spec.workflow_config`: how the stages of one file behave together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict

from mloc_dagster.spec.base import Section, also


class SharedStorage(Section):
    """A folder that stages share: read, and warned about, since stages hand over results by reference."""

    base_path: str | None = None
    cleanup_on_completion: bool = False


class FinalOutput(Section):
    """The file that the whole workflow hands out, once the stages that it tells of have succeeded."""

    model_config = ConfigDict(extra="allow")

    source: Annotated[str | None, also("stage")] = None
    """The stage whose result it is, or a path into one such as answer.result.items; the last stage unless given."""
    include: list[str] = []
    """Further stages (or paths); the document is then a map from each of these names to its value."""
    format: Literal["json", "jsonl", "csv"] = "json"
    """jsonl and csv need one list of rows."""
    path: str | None = None
    """Logical path inside the results folder; <task>/final_output.<format> unless given."""

    @property
    def names(self) -> list[str]:
        """What it holds, in order, without doubles; empty when that is the last stage."""
        return list(dict.fromkeys([*([self.source] if self.source else []), *self.include]))


class WorkflowConfig(Section):
    """Order and failure behaviour of the whole file."""

    execution_mode: Literal["sequential", "parallel", "auto"] = "auto"
    """sequential: one step at a time, as the file lists them; else side by side what waits for nothing."""
    failure_strategy: Literal["stop", "continue"] | None = None
    """stop: nothing more starts after a failure. continue: only what reads a failed stage's result does not run, and
    stages run one at a time in the file's order. Without either, what waits for a failed stage does not run."""
    shared_storage: SharedStorage | None = None
    final_output: FinalOutput | None = None

    @property
    def one_at_a_time(self) -> bool:
        """Whether steps run one after the other, as the file lists them."""
        return self.execution_mode == "sequential" or self.failure_strategy == "continue"


class Slo(Section):
    """A service level in seconds; a breach is reported, never a kill."""

    seconds: Annotated[float | None, also("sloSeconds")] = None
