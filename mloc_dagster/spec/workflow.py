"""`spec.workflow_config`: how the stages of one file behave together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from mloc_dagster.spec.base import Section, also


class SharedStorage(Section):
    """A folder that stages share."""

    base_path: str | None = None
    cleanup_on_completion: bool = False


class FinalOutput(Section):
    """What the whole workflow hands out; further keys are free."""

    model_config = ConfigDict(extra="allow")

    source: Annotated[str | None, also("stage")] = None
    format: str | None = None
    path: str | None = None
    include: list[str] = []


class WorkflowConfig(Section):
    """Order and failure behaviour of the whole file."""

    execution_mode: Literal["sequential", "parallel", "auto"] = "auto"
    failure_strategy: Literal["stop", "continue"] = "stop"
    shared_storage: SharedStorage | None = None
    final_output: FinalOutput | None = None


class Serve(Section):
    """A long-running endpoint."""

    host: str = "127.0.0.1"
    port: Annotated[int | None, Field(ge=0, le=65535)] = None
    ttl_seconds: Annotated[float | None, Field(gt=0), also("ttlSeconds")] = None


class Slo(Section):
    """A service level in seconds; a breach is reported, never a kill."""

    seconds: Annotated[float | None, also("sloSeconds")] = None
