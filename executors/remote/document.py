"""What the control plane and a remote step write for each other: a job and a result. No secret is in either."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from executors.job import Job
from mloc_dagster.spec.base import Json

JOB, RESULT, STATE = "job.json", "result.json", "state.json"
"""Names in the store: the first two of an attempt, the last of all attempts at the same work."""


class Input(BaseModel):
    """A file or folder that the stage reads: where the control plane has it, and what it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: str
    """The path as the job names it."""
    tree: str
    """Digest of its listing."""
    file: str | None = None
    """Name of the file in the listing; None for a folder."""


class Versioned(BaseModel):
    """What the document of any version tells."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: str


class RemoteJob(BaseModel):
    """One attempt at a stage. Paths in `job` are those of the control plane; `inputs` says what is behind them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    """Of MLOC: the image must have the same."""
    work: str
    """Digest of the work: state of earlier attempts is found by it."""
    job: Job
    inputs: tuple[Input, ...] = ()
    timeout: float | None = None
    """Seconds for the stage itself, without pulling and pushing."""
    grace: float
    """Seconds from SIGTERM to SIGKILL."""
    sync: float
    """Seconds between two pushes of unfinished work."""
    libraries: dict[str, str | None] = {}
    """Versions that the control plane has of the libraries that change results; None: it does not have it."""


class RemoteResult(BaseModel):
    """How an attempt ended; `out` is the digest of all that it left, `error` what the stage says of its fault."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: int
    out: str | None = None
    at: str = ""
    """The folder that the work was done in: files name it, and it is another one on each machine."""
    error: dict[str, Json] | None = None
    stopped: bool = False
    timed_out: bool = False
    out_of_memory: bool = False


def result_name(rank: int) -> str:
    """Return how the result of one node of an attempt is called; that of the first is the attempt's."""
    return f"result-{rank}.json" if rank else RESULT


class State(BaseModel):
    """What the latest attempt at a piece of work had stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: str
