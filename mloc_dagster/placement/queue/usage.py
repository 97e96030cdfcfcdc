"""What owners have used lately, so that each gets its share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mloc_dagster.placement.queue.items import Policy, Running
from mloc_dagster.placement.workers.need import WHOLE, Need
from mloc_dagster.placement.workers.room import Worker

_UNKNOWN_SECONDS = 60.0
"""What a run of unknown length is charged ahead of its use."""


class Total:
    """The hardware of all workers together."""

    def __init__(self, workers: Iterable[Worker]) -> None:
        workers = list(workers)
        self.cpu = max(1, sum(worker.cpu for worker in workers))
        self.memory = max(1, sum(worker.memory for worker in workers))
        self.devices = max(1, sum(len(worker.devices) for worker in workers) * WHOLE)

    def share(self, need: Need) -> float:
        """The largest of a need's parts of cores, memory and devices (the dominant share of Ghodsi et al. 2011)."""
        devices = sum(gpu.count * gpu.share for gpu in need.gpus)
        return max(need.cpu / self.cpu, need.memory / self.memory, devices / self.devices)


class Usage:
    """Dominant share × seconds of each owner, halved every half-life."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._used: dict[str, float] = {}
        self._at: float | None = None

    def advance(self, now: float, running: Sequence[Running], total: Total) -> dict[str, float]:
        """Count what ran since the last call; returns the score of each owner, the lowest of which is served first."""
        passed = max(0.0, now - self._at) if self._at is not None else 0.0
        faded = 0.5 ** (passed / self._policy.half_life)
        self._used = {owner: used * faded for owner, used in self._used.items() if used * faded > 1e-9}
        committed: dict[str, float] = {}
        for run in running:
            share = total.share(run.need)
            spent = share * min(passed, max(0.0, now - run.started))
            self._used[run.owner] = self._used.get(run.owner, 0.0) + spent
            left = _UNKNOWN_SECONDS if run.expected is None else run.end(now) - now
            committed[run.owner] = committed.get(run.owner, 0.0) + share * left
        self._at = now
        owners = self._used.keys() | committed.keys()
        return {owner: self._weighed(owner, self._used.get(owner, 0) + committed.get(owner, 0)) for owner in owners}

    def charge(self, owner: str, need: Need, expected: float | None, total: Total) -> float:
        """What a run that begins adds to its owner's score."""
        return self._weighed(owner, total.share(need) * (_UNKNOWN_SECONDS if expected is None else expected))

    @property
    def used(self) -> dict[str, float]:
        """What is kept over a restart."""
        return dict(self._used)

    def restore(self, used: Mapping[str, float], at: float) -> None:
        """Go on from what was saved at a time."""
        self._used, self._at = dict(used), at

    def _weighed(self, owner: str, used: float) -> float:
        return used / self._policy.weights.get(owner, 1.0)
