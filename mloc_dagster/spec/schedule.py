"""`spec.schedule` and `spec.triggers`: when a task that was added to the deployment runs by itself."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from mloc_dagster.spec.base import Positive, Section, also


class Schedule(Section):
    """Times at which the task runs."""

    cron: Annotated[str, Field(max_length=200)]
    """Minute, hour, day of the month, month, day of the week, as cron reads them: 30 2 * * mon-fri."""
    timezone: Annotated[str, also("time_zone")] = "UTC"
    """Zone that the times are in, such as Europe/Berlin."""
    fresh: bool = False
    """Do the work again each time, also where nothing has changed since the last one."""


class Triggers(Section):
    """What starts the task when it comes; several at a time start it once."""

    inbox: Annotated[str | None, Field(min_length=1)] = None
    """Folder on the machine of the daemon: a file that is new or has changed there starts the task."""
    s3_prefix: Annotated[str | None, Field(pattern=r"^s3://[^/\s]+(/.*)?$")] = None
    """s3://bucket/prefix: an object that is new or has changed below it starts the task."""
    asset_updated: list[str] = []
    """Assets such as other-task/stage: a new result of one of them starts the task."""
    every_seconds: Positive = 10
    """How often they are looked at, in seconds."""

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not (self.inbox or self.s3_prefix or self.asset_updated):
            raise ValueError("names nothing that could start the task; add inbox, s3_prefix or asset_updated")
        return self
