"""Steps of one worker that reaches out, as the run that follows them sees them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from mloc_dagster.placement.failures.cause import Cause
from mloc_dagster.placement.pull.desk import Desk, PullOrder
from mloc_dagster.placement.remote.carrier import Ending, Order, Sign
from mloc_dagster.placement.workers.outbound import Pull, Registry
from mloc_dagster.store.home import Home

_OWN = frozenset(
    {"MLOC_REMOTE_ROOT", "MLOC_ENGINE_IDLE", "PYTHONUNBUFFERED", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM"}
)
"""Settings that the machine knows better."""
_LOOK_SECONDS = 0.2
_QUIET_SECONDS = 5.0
"""A worker that was heard of within this time is there: it says something more often."""
_TELL_SECONDS = 60.0
_MORE_SECONDS = 2.0
"""Beyond the grace, for the way there and back."""


class PullCarrier:
    """The attempts of one worker."""

    def __init__(self, worker: str, declared: Pull, home: Home) -> None:
        self._worker, self._declared = worker, declared
        self._desk, self._registry = Desk(home), Registry(home)
        self.grace = declared.stop_seconds

    def find(self, job: str) -> Sequence[PullAttempt]:
        """Attempts at a piece of work that nobody has cleared away."""
        return [self._attempt(order) for order in self._desk.orders(self._worker) if order.job == job]

    def start(self, order: Order) -> PullAttempt:
        """Put an attempt down for the worker, which asks for it."""
        made = PullOrder(
            attempt=order.attempt, job=order.job, key=order.key, worker=self._worker,
            names=tuple(sorted(order.environment.keys() - _OWN)), memory=order.memory, devices=tuple(order.devices),
            grace=self.grace, labels=dict(order.labels),
        )  # fmt: skip
        self._desk.offer(made)
        return self._attempt(made)

    def _attempt(self, order: PullOrder) -> PullAttempt:
        return PullAttempt(order, self._declared, self._desk, self._registry)


class PullAttempt:
    """One attempt on a machine that is reached only when it asks."""

    def __init__(self, order: PullOrder, declared: Pull, desk: Desk, registry: Registry) -> None:
        self.attempt, self.worker = order.attempt, order.worker
        self.devices = tuple(map(str, order.devices))
        self.place = f"attempt {order.attempt} on {order.worker}"
        self._declared, self._desk, self._registry = declared, desk, registry
        self._followed = time.time()
        self._read, self._told = 0, 0.0
        self._lost = ""

    def stream(self) -> Iterator[bytes | Sign]:
        """Yield its log as it comes. A worker that is away is waited for; after `away_seconds` it is given up."""
        while True:
            over = self._desk.order(self.attempt) is None or self._desk.ending(self.attempt) is not None
            while block := self._desk.read(self.attempt, self._read):
                self._read += len(block)
                yield block
            if over:
                return
            away = self._away()
            if away > self._declared.away_seconds:
                self._lost = f"was not heard of for {away:.0f} s (away_seconds); what it had stored is continued"
                self._desk.give_up(self.attempt)
                return
            if away > _QUIET_SECONDS or not self._desk.begun(self.attempt):
                yield self._sign(away)
            time.sleep(_LOOK_SECONDS)

    def ending(self) -> Ending | None:
        """How it ended; None while it runs, or waits for its worker."""
        if self._lost:
            return Ending(None, words=self._lost, cause=Cause.WORKER_LOST)
        if self._desk.order(self.attempt) is None:
            return Ending(None, words="it was given up")
        end = self._desk.ending(self.attempt)
        return end and Ending(end.code, end.out_of_memory, end.words, end.cause)

    def stop(self) -> None:
        """Ask it to end; a worker that is away hears of it when it is back."""
        self._desk.stop(self.attempt, kill=False)
        self._wait(self._declared.stop_seconds + _MORE_SECONDS)

    def kill(self) -> None:
        """Have it killed."""
        self._desk.stop(self.attempt, kill=True)
        self._wait(_MORE_SECONDS)

    def remove(self, *, failed: bool) -> None:
        """Give it up: what the worker still brings is refused, and it ends what still runs."""
        self._desk.give_up(self.attempt)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self.ending() is None and self._away() < _QUIET_SECONDS and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)

    def _away(self) -> float:
        """Seconds since its worker was heard of, as far as this process has followed it."""
        return time.time() - max(self._followed, self._registry.seen(self.worker))

    def _sign(self, away: float) -> Sign:
        if away < _QUIET_SECONDS or time.monotonic() - self._told < _TELL_SECONDS:
            return Sign()
        self._told = time.monotonic()
        return Sign(f"{self.worker} was not heard of for {away:.0f} s; its work is waited for")
