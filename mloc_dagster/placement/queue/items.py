"""What the order is told, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mloc_dagster.placement.workers.need import Need


@dataclass(frozen=True)
class Policy:
    """How runs are ordered; times in seconds."""

    weights: Mapping[str, float] = field(default_factory=dict)
    """Share of each owner against the others; 1 for those that are not named."""
    aging: float = 14400.0
    """A wait of this length counts as much as one step of priority."""
    half_life: float = 3600.0
    """What an owner has used counts half after this time."""
    most: int = -1
    """So many runs at once; -1: as many as there is room for."""


@dataclass(slots=True)
class Queued:
    """A run that waits. `submitted` in seconds since the epoch, `slo` and `expected` (how long it takes) in seconds."""

    run_id: str
    owner: str
    submitted: float
    need: Need
    priority: int = 0
    slo: float | None = None
    expected: float | None = None
    task: str = ""
    not_before: float = 0.0
    """Seconds since the epoch: a further attempt waits until then."""
    avoid: str = ""
    """A worker that an attempt before was lost on; others come first."""
    stages: tuple[Need, ...] = ()
    """What each stage needs, in order, where that differs."""
    led_since: float | None = None
    """When it first was the next of its owner; its aging against other owners counts from there."""


@dataclass(frozen=True, slots=True)
class Running:
    """A run that holds a part of a worker; `devices` are thousandths by device index."""

    run_id: str
    owner: str
    worker: str
    need: Need
    devices: Mapping[int, int]
    started: float
    expected: float | None = None

    def end(self, now: float) -> float:
        """When it should be over; one that nothing is known of, or that is late, may end at any moment."""
        return now if self.expected is None else max(now, self.started + self.expected)


@dataclass(frozen=True, slots=True)
class Kept:
    """What a stage of a run that goes on waits for, and the worker where that is kept for it."""

    run_id: str
    worker: str
    need: Need


@dataclass(frozen=True, slots=True)
class Start:
    """A run that can begin now, where, and on which devices (thousandths by index).

    `split`: that is for its first stage; each stage takes a worker of its own.
    """

    item: Queued
    worker: str
    need: Need
    devices: Mapping[int, int]
    split: bool = False


@dataclass(frozen=True)
class Decisions:
    """Runs that begin now, and those that wait, first come first, each with its reason."""

    starts: list[Start]
    waiting: list[tuple[Queued, str]]
