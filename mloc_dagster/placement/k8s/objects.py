"""What is read of the objects of a cluster: the documented fields of Jobs and Pods that say how an attempt fares."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from mloc_dagster.placement.k8s.names import CONTAINER

_INDEX = "batch.kubernetes.io/job-completion-index"
"""Annotation of the pods of an Indexed Job."""


class Read(BaseModel):
    """A part of an object; all else in it is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


class Metadata(Read):
    """Of any object."""

    name: str
    uid: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None


class Condition(Read):
    """One condition of a status."""

    type: str
    status: str
    reason: str = ""
    message: str = ""

    @property
    def holds(self) -> bool:
        """Whether it is true."""
        return self.status == "True"


class JobSpec(Read):
    """What was asked for."""

    suspend: bool = False
    completions: int | None = None


class JobStatus(Read):
    """What became of it."""

    conditions: list[Condition] | None = None


class Job(Read):
    """batch/v1 Job."""

    metadata: Metadata
    spec: JobSpec = JobSpec()
    status: JobStatus = JobStatus()

    @property
    def replicas(self) -> int:
        """How many pods it has."""
        return self.spec.completions or 1

    @property
    def failed(self) -> Condition | None:
        """Why it has failed, or is about to."""
        return _first(self.status.conditions, "FailureTarget", "Failed")

    @property
    def over(self) -> bool:
        """Whether it has finished, well or not."""
        return _first(self.status.conditions, "Complete", "Failed") is not None


class Waiting(Read):
    """A container that has not begun."""

    reason: str = ""
    message: str = ""


class Running(Read):
    """A container that runs."""


class Terminated(Read):
    """A container that has ended."""

    exit_code: int
    reason: str = ""
    message: str = ""
    finished_at: str = ""


class ContainerState(Read):
    """One of three."""

    waiting: Waiting | None = None
    running: Running | None = None
    terminated: Terminated | None = None

    @property
    def begun(self) -> bool:
        """Whether it runs or did."""
        return self.running is not None or self.terminated is not None


class ContainerStatus(Read):
    """Of one container."""

    name: str = ""
    state: ContainerState = ContainerState()


class PodSpec(Read):
    """Where it is."""

    node_name: str = ""


class PodStatus(Read):
    """How it fares."""

    phase: str = ""
    reason: str = ""
    message: str = ""
    conditions: list[Condition] | None = None
    container_statuses: list[ContainerStatus] | None = None


class Pod(Read):
    """v1 Pod: that of the stage, and what the cluster may add to it."""

    metadata: Metadata
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def index(self) -> int:
        """Which of the pods of an Indexed Job it is; 0 for the pod of any other."""
        return int(self.metadata.annotations.get(_INDEX) or 0)

    @property
    def state(self) -> ContainerState:
        """The state of the stage's container."""
        states = (one.state for one in self.status.container_statuses or () if one.name == CONTAINER)
        return next(states, ContainerState())

    @property
    def taken(self) -> str:
        """Why the cluster takes it away: evicted, preempted, its node drained or lost; empty when it does not."""
        if self.status.reason:
            return _sentence(self.status.reason, self.status.message)
        target = _first(self.status.conditions, "DisruptionTarget")
        return _sentence(target.reason or target.type, target.message) if target else ""

    @property
    def unschedulable(self) -> str:
        """Why there is no node for it, in the scheduler's words."""
        conditions = self.status.conditions or ()
        refused = next((one for one in conditions if one.type == "PodScheduled" and one.status == "False"), None)
        return _sentence(refused.reason or "Unschedulable", refused.message) if refused else ""


class Jobs(Read):
    """A list."""

    items: list[Job] = []


class ListMetadata(Read):
    """Of a list."""

    resource_version: str = ""


class Pods(Read):
    """A list, and the state of the cluster that it is of."""

    metadata: ListMetadata = ListMetadata()
    items: list[Pod] = []


def _first(conditions: list[Condition] | None, *types: str) -> Condition | None:
    return next((one for one in conditions or () if one.type in types and one.holds), None)


def _sentence(reason: str, message: str) -> str:
    return f"{reason}: {message}" if message else reason
