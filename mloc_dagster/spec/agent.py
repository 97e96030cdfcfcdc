"""`spec.agent`: tools, limits and profile of an agent."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mloc_dagster.spec.base import Json, Positive, Section, also
from mloc_dagster.spec.model import Model


class Agent(Section):
    """One agent; a profile fills what is not given."""

    type: Annotated[Literal["react", "tool_calling", "orchestrated"], also("agent_type")] = "react"
    config_name: Annotated[str | None, also("configName")] = None
    tools: list[str | dict[str, Json]] = []
    max_iterations: Positive = 10
    timeout: Annotated[float, Field(gt=0)] = 300.0
    instructions: str | None = None
    model: Model | str | None = None
