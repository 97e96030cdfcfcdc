"""Keeps the order in step with Dagster's runs and with the ledger, and starts what can begin."""

from __future__ import annotations

import gc
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, takewhile

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter

from mloc_dagster.placement.launcher.workers import LAUNCHER, launcher_tag
from mloc_dagster.placement.ledger import Lease, Ledger
from mloc_dagster.placement.ledger.grant import Grant
from mloc_dagster.placement.queue.asked import WAITING, queued, task_key
from mloc_dagster.placement.queue.items import Decisions, Kept, Policy, Queued, Running, Start
from mloc_dagster.placement.queue.order import Order
from mloc_dagster.placement.workers.room import Worker
from mloc_dagster.spec.base import Json

_log = logging.getLogger("mloc")
VIEW, MEMORY = "queue", "order"
"""Names under which the ledger keeps what the command shows, and what a daemon goes on from."""
_PAGE = 250
_SHOWN = 500
_TELL_SECONDS = 0.05
"""So long one pass writes tags of waiting runs: a tag costs milliseconds, and 10,000 may wait."""
_TAKE_SECONDS = 0.1
"""So long one pass takes in runs that are new to it: a daemon that was just started may find 10,000."""
_LOOK_AFTER_SECONDS = 1.0
_REMEMBER_AFTER_SECONDS = 10.0
_MOST_LEARNED = 2000
_BEGINNING_SECONDS = 10.0
"""A run that waits and holds a lease for so long was not started by whoever claimed it."""
_STARTING_SECONDS = 120.0
"""So long a lease holds before the run's worker renews it: a cold start on a busy machine takes its time."""
_APART_SECONDS = 30.0
"""So long a run is left alone that could not be looked at or started; others do not wait for it."""
_MOST_OF_THE_TIME = 0.2
"""Part of its time that a daemon looks for runs at most."""


@dataclass(slots=True)
class _Reason:
    text: str
    since: float
    tagged: bool = False


class Scheduler:
    """One pass after the other.

    `launch` starts a run and tells whether it did. `settled` gets a run that has a lease, and whether that has expired;
    it ends the run if its worker is lost, and tells whether the run is over.
    """

    def __init__(
        self,
        instance: DagsterInstance,
        ledger: Ledger,
        policy: Policy,
        lease_seconds: float,
        launch: Callable[[DagsterRun], bool],
        settled: Callable[[DagsterRun, bool], bool],
    ) -> None:
        self._instance, self._ledger, self._order = instance, ledger, Order(policy)
        self._lease_seconds, self._launch, self._settled = lease_seconds, launch, settled
        self._reasons: dict[str, _Reason] = {}
        self._learned: dict[str, float] = {}
        self._held: dict[str, Lease] = {}
        self._apart: dict[str, float] = {}
        self._looked = self._looked_after = self._remembered = self._decided = self._cost = 0.0
        self._view: Json = None
        self.behind = False
        """Whether runs wait that no pass has taken in yet; until then nothing starts, since what comes first may be one
        of them."""
        self._restore()

    def step(self, woken: bool) -> Iterator[None]:
        """Look for runs that came or went, and start what can begin; yields between runs that it starts."""
        now = time.monotonic()
        if not (woken or self.behind) and now - self._looked < self._cost / _MOST_OF_THE_TIME:
            return
        changed = self._look()
        self._looked = time.monotonic()
        self._cost = self._looked - now
        if woken or now - self._looked_after > _LOOK_AFTER_SECONDS:
            self._look_after_leases()
            self._looked_after = now
        seen, leases = self._ledger.snapshot()
        changed = self._ended(leases) or changed
        if self.behind:
            return
        if len(self._order) and (changed or woken or now - self._decided > _LOOK_AFTER_SECONDS):
            self._decided = now
            here = [one.worker for one in seen if one.host == socket.gethostname()]  # runs are started on this host
            yield from self._decide(here, leases)
        elif not len(self._order):
            self._publish(Decisions([], []), time.time())
        self._remember(now)

    def close(self) -> None:
        """Keep what the next daemon goes on from."""
        self._remember(float("inf"))

    def _look(self) -> bool:
        """Take in runs that wait now and let go of those that do not; returns whether there were any."""
        waiting = set(self._instance.get_run_ids(RunsFilter(statuses=[DagsterRunStatus.QUEUED])))
        gone = [run_id for run_id in self._order if run_id not in waiting]
        for run_id in gone:
            self._forget(run_id)
        now = time.monotonic()
        self._apart = {run_id: until for run_id, until in self._apart.items() if until > now}
        new = [run_id for run_id in waiting if run_id not in self._order and run_id not in self._apart]
        self._take(new)
        return bool(gone or new)

    def _take(self, new: list[str]) -> None:
        """Take in runs, as many as there is time for."""
        until, taken = time.monotonic() + _TAKE_SECONDS, 0
        for page in takewhile(lambda _: time.monotonic() < until, _pages(new)):
            for record in self._instance.get_run_records(RunsFilter(run_ids=page)):
                if record.dagster_run.status is DagsterRunStatus.QUEUED:
                    with self._by_itself(record.dagster_run.run_id):
                        self._order.add(queued(record, self._learned))
            taken += len(page)
        self.behind = taken < len(new)
        if taken >= _PAGE:
            gc.collect()
            gc.freeze()  # Python would look at all of them again and again, for longer than a pass takes

    @contextmanager
    def _by_itself(self, run_id: str) -> Iterator[None]:
        """Have a fault that comes of one run be told, and the others go on."""
        try:
            yield
        except Exception:
            _log.exception("run %s cannot be looked at or started; the next try is in %g s", run_id, _APART_SECONDS)
            self._forget(run_id)
            self._apart[run_id] = time.monotonic() + _APART_SECONDS

    def _decide(self, workers: list[Worker], leases: list[Lease]) -> Iterator[None]:
        now = time.time()
        running = [
            Running(one.run_id, one.owner, one.worker, one.need, one.devices, one.taken_at, one.expected)
            for one in leases
        ]
        kept = [Kept(one.run_id, one.worker, one.need) for one in self._ledger.waits()]
        decisions = self._order.decide(now, workers, running, kept)
        by_name = {worker.name: worker for worker in workers}
        for start in decisions.starts:
            with self._by_itself(start.item.run_id):
                self._start(start, by_name[start.worker])
            yield
        self._publish(decisions, now)

    def _start(self, start: Start, worker: Worker) -> None:
        """Claim what a run needs, tell it, and launch it; when another daemon was quicker, nothing happens."""
        item = start.item
        run = self._instance.get_run_by_id(item.run_id)
        if run is None or run.status is not DagsterRunStatus.QUEUED:
            return
        seconds = max(_STARTING_SECONDS, self._lease_seconds)
        lease = self._ledger.claim(
            item.run_id, item.owner, start.need, seconds, worker=worker.name, expected=item.expected
        )
        if lease is None:
            return
        tags = Grant.of_lease(lease, worker, self._lease_seconds, split=start.split).as_tag()
        tags[LAUNCHER] = launcher_tag(item.run_id)
        reason = self._reasons.get(item.run_id)
        if reason is not None and reason.tagged:
            tags[WAITING] = f"over after {time.time() - item.submitted:.0f} s"
        self._instance.add_run_tags(item.run_id, tags)
        self._forget(item.run_id)
        if self._launch(run):
            self._held[item.run_id] = lease
        else:
            self._ledger.release(lease.token)

    def _look_after_leases(self) -> None:
        """Release leases of runs that are over or never began, and of those whose worker is lost.

        One that has expired holds what it has all the same: this machine slept, or the disk is slow.
        """
        _, leases = self._ledger.snapshot()
        silent = {lease.token for lease in self._ledger.expired()}
        for page in _pages(leases):
            runs = {run.run_id: run for run in self._instance.get_runs(RunsFilter(run_ids=[one.run for one in page]))}
            for lease in page:
                run = runs.get(lease.run)
                with self._by_itself(lease.run):
                    if run is None or self._is_over(run, lease, lease.token in silent):
                        self._ledger.release(lease.token)

    def _is_over(self, run: DagsterRun, lease: Lease, silent: bool) -> bool:
        if (
            lease.run != lease.run_id
        ):  # of a stage: the run's own lease, or the watch over all runs, tells of the worker
            return run.is_finished
        return _left(run, lease) or self._settled(run, silent)

    def _ended(self, leases: list[Lease]) -> bool:
        """Note leases that are gone, and how long their runs took; returns whether there were any."""
        there = {lease.run_id: lease for lease in leases}
        gone = self._held.keys() - there.keys()
        for page in _pages(gone):
            for record in self._instance.get_run_records(RunsFilter(run_ids=page)):
                if record.dagster_run.is_success and record.start_time and record.end_time:
                    self._learn(task_key(record.dagster_run.tags), record.end_time - record.start_time)
        self._held = there
        return bool(gone)

    def _learn(self, key: str, seconds: float) -> None:
        """Expect a task to take what it took last, or the mean of that and before, whichever is longer."""
        before = self._learned.pop(key, seconds)
        self._learned[key] = max(seconds, (before + seconds) / 2)
        while len(self._learned) > _MOST_LEARNED:
            del self._learned[next(iter(self._learned))]

    def _forget(self, run_id: str) -> None:
        self._order.remove(run_id)
        self._reasons.pop(run_id, None)

    def _publish(self, decisions: Decisions, now: float) -> None:
        """Tell why runs wait: a tag of the runs that come first, and the whole order for the command."""
        for item, text in decisions.waiting:
            known = self._reasons.get(item.run_id)
            if known is None or known.text != text:
                self._reasons[item.run_id] = _Reason(text, now)
        untold = (item for item, _ in decisions.waiting if not self._reasons[item.run_id].tagged)
        until = time.monotonic() + _TELL_SECONDS
        for item in takewhile(lambda _: time.monotonic() < until, untold):
            reason = self._reasons[item.run_id]
            self._instance.add_run_tags(item.run_id, {WAITING: reason.text})
            reason.tagged = True
        view = {
            "waiting": len(decisions.waiting),
            "reasons": dict(Counter(text for _, text in decisions.waiting).most_common(50)),
            "first": [self._row(item) for item, _ in decisions.waiting[:_SHOWN]],
        }
        if view != self._view:
            self._view = view
            self._ledger.save(VIEW, {**view, "at": now})

    def _row(self, item: Queued) -> Json:
        reason = self._reasons[item.run_id]
        return {
            "run_id": item.run_id,
            "task": item.task,
            "owner": item.owner,
            "priority": item.priority,
            "submitted": item.submitted,
            "reason": reason.text,
            "since": reason.since,
        }

    def _remember(self, now: float) -> None:
        if now - self._remembered > _REMEMBER_AFTER_SECONDS:
            self._remembered = now
            self._ledger.save(MEMORY, {"used": self._order.usage.used, "learned": self._learned, "at": time.time()})

    def _restore(self) -> None:
        memory = self._ledger.saved(MEMORY)
        if memory:
            self._order.usage.restore(memory["used"], memory["at"])
            self._learned = dict(memory["learned"])


def _left(run: DagsterRun, lease: Lease) -> bool:
    """Whether a daemon died between the claim and the launch."""
    return run.status is DagsterRunStatus.QUEUED and time.time() - lease.taken_at > _BEGINNING_SECONDS


def _pages(items: Iterable) -> Iterator[list]:
    """Pages short enough for one statement."""
    iterator = iter(items)
    while page := list(islice(iterator, _PAGE)):
        yield page
