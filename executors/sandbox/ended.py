"""How a command in the sandbox ended."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Cause = Literal["time", "memory", "output", "disk", "processes"]
BackendName = Literal["bubblewrap", "namespaces", "none"]


class Ended(BaseModel):
    """The outcome of one command.

    `exit_code` is 128 + the signal's number after a signal. `ended_by` names the limit that ended it: it was killed
    for it, or it failed with that limit's error as its last words. `backend` is `none` when it ran unprotected.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    exit_code: int
    stdout: str
    stderr: str
    seconds: float
    ended_by: Cause | None
    backend: BackendName
