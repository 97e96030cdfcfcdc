"""The order of waiting runs and what can begin now: no clock, no database, no Dagster.

**Order.** Higher priority first; of the same priority, the run that has used up most of its SLO; then the owner that
has used least of its share lately (`usage`); then the oldest. Waiting counts as priority: each `aging` seconds is one
step. Between runs of one owner the whole wait counts; between owners only the time since a run was its owner's next,
or the owner with the longest queue would win against all others just by having it.

**Room.** A run that does not fit keeps the place of others behind it: on the worker where it can begin soonest, from
the moment when it can (by the expected ends of what runs there), its hardware is reserved. Others may begin there when
they end before that moment or use only what it leaves (EASY backfilling, Lifka 1995), one reservation a worker. Runs
without an expected length are taken to end at any moment when others wait for them, and never when they are to fit in.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mloc_dagster.placement.queue.items import Decisions, Kept, Policy, Queued, Running, Start
from mloc_dagster.placement.queue.usage import Total, Usage
from mloc_dagster.placement.workers.need import Need
from mloc_dagster.placement.workers.room import Room, Worker, preference, settled, settled_run, shortage

_URGENT_FROM = 0.25
"""Part of an SLO that may pass before a run comes before others of its priority."""
_URGENCY_STEPS = 20

_Asked = tuple[Need, tuple[Need, ...]]
"""What a run asks for as a whole, and stage by stage."""


class Order:
    """The runs that wait. Add and remove them as they come and go; `decide` looks at all of them at a time."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.usage = Usage(policy)
        self._items: dict[str, Queued] = {}

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def add(self, item: Queued) -> None:
        """Add a run that waits from now on."""
        self._items[item.run_id] = item

    def remove(self, run_id: str) -> None:
        """Take a run out: it has begun, or was cancelled."""
        self._items.pop(run_id, None)

    def decide(
        self, now: float, workers: Sequence[Worker], running: Sequence[Running], kept: Sequence[Kept] = ()
    ) -> Decisions:
        """Return what begins now, and why the others wait; times in seconds since the epoch.

        `kept` is for stages of runs that have begun, and comes before all that waits.

        Changes nothing but what owners have used: call `remove` for what has really begun.
        """
        total = Total(workers)
        scores = self.usage.advance(now, running, total)
        pass_ = _Pass(now, workers, running, self.policy.most)
        for one in kept:
            pass_.keep(one)
        waiting: list[tuple[Queued, str]] = []
        for item in self._in_order(now, scores, pass_, total):
            reason = pass_.place(item)
            if reason:
                waiting.append((item, reason))
        waiting += [(item, _later(item)) for item in self._items.values() if item.not_before > now]
        return Decisions(pass_.starts, waiting)

    def _in_order(self, now: float, scores: dict[str, float], pass_: _Pass, total: Total) -> Iterator[Queued]:
        """Yield all runs; the score of an owner grows with each of its runs that begins meanwhile."""
        queues = self._by_owner(now)
        heads = [(*self._key(queue[-1], now, scores), owner) for owner, queue in queues.items()]
        heapq.heapify(heads)
        while heads:
            owner = heads[0][-1]
            queue = queues[owner]
            item = queue.pop()
            begun = len(pass_.starts)
            yield item
            if len(pass_.starts) > begun:
                charge = self.usage.charge(owner, pass_.starts[-1].need, item.expected, total)
                scores[owner] = scores.get(owner, 0.0) + charge
            if queue:
                heapq.heapreplace(heads, (*self._key(queue[-1], now, scores), owner))
            else:
                heapq.heappop(heads)

    def _by_owner(self, now: float) -> dict[str, list[Queued]]:
        """Each owner's runs, the next one last; notes since when it is that."""
        queues: dict[str, list[Queued]] = {}
        for item in self._items.values():
            if item.not_before <= now:
                queues.setdefault(item.owner, []).append(item)
        aging = self.policy.aging

        def key(item: Queued) -> tuple[int, int, float]:
            waited = now - item.submitted
            urgency = _urgency(item, waited) if item.slo else 0
            return (item.priority + int(waited / aging), urgency, -item.submitted)

        for queue in queues.values():
            queue.sort(key=key)
            if queue[-1].led_since is None:
                queue[-1].led_since = now
        return queues

    def _key(self, item: Queued, now: float, scores: dict[str, float]) -> tuple[int, int, float, float]:
        led = 0.0 if item.led_since is None else now - item.led_since
        urgency = _urgency(item, now - item.submitted) if item.slo else 0
        return (-item.priority - int(led / self.policy.aging), -urgency, scores.get(item.owner, 0.0), item.submitted)


def _urgency(item: Queued, waited: float) -> int:
    """Steps of the used share of the SLO: what has passed and what the run still takes; 0 while there is time.

    A run that cannot meet its SLO any more has no urgency: it must not make others miss theirs.
    """
    assert item.slo
    share = (waited + (item.expected or 0.0)) / item.slo
    return int(share * _URGENCY_STEPS) if _URGENT_FROM <= share <= 1 else 0


@dataclass
class _Reservation:
    run_id: str
    need: Need
    begins: float
    leaves: Room
    """What is free at that moment beside the reserved."""


class _Pass:
    """One pass over the queue: rooms shrink, reservations come."""

    def __init__(self, now: float, workers: Sequence[Worker], running: Sequence[Running], most: int) -> None:
        self.starts: list[Start] = []
        self._now, self._workers, self._most = now, workers, most
        self._going = len({run.run_id.partition("/")[0] for run in running})  # without their stages
        self._rooms = {worker.name: Room.whole(worker) for worker in workers if worker.state == "ready"}
        self._holders: dict[str, list[Running]] = {name: [] for name in self._rooms}
        self._reserved: dict[str, _Reservation] = {}
        self._settled: dict[_Asked, tuple[Need | None, bool]] = {}
        self._refused: dict[_Asked, tuple[float, str]] = {}
        for run in running:
            self._hold(run)

    def keep(self, kept: Kept) -> None:
        """Reserve room for a stage that waits; one that has it now takes it itself in a moment."""
        room = self._rooms.get(kept.worker)
        found = self._soonest(room, kept.need) if room is not None and kept.worker not in self._reserved else None
        if found is not None:
            begins, leaves = found
            leaves.take(kept.need, leaves.fit(kept.need) or {})
            self._reserved[kept.worker] = _Reservation(kept.run_id, kept.need, begins, leaves)

    def place(self, item: Queued) -> str:
        """Start a run, or return why it waits."""
        length = math.inf if item.expected is None else item.expected
        asked = (item.need, item.stages)
        shortest, reason = self._refused.get(asked, (math.inf, ""))
        if reason and length >= shortest:  # what was refused to such a run stays refused: rooms only shrink
            return reason
        if self._most >= 0 and self._going >= self._most:
            return f"{self._going} runs are going on, the most that are allowed (max_concurrent_runs)"
        need, split = self._need(asked)
        if need is None:
            return self._refuse(asked, 0, f"needs {_asked(self._unmet(item))}, which no worker has")
        for room in sorted(self._rooms.values(), key=lambda room: preference(room, need, item.avoid)):
            devices = self._fit(room, need, length)
            if devices is not None:
                self._start(item, room.worker.name, need, devices, split)
                return ""
        anywhere = any(room.fit(need) is not None for room in self._rooms.values())
        return self._refuse(asked, length if anywhere else 0, self._wait(item, need))

    def _need(self, asked: _Asked) -> tuple[Need | None, bool]:
        if asked not in self._settled:
            self._settled[asked] = settled_run(*asked, self._workers)
        return self._settled[asked]

    def _unmet(self, item: Queued) -> Need:
        """What of a run no worker has: a stage's need where one is to blame."""
        return next((part for part in item.stages if settled(part, self._workers) is None), item.need)

    def _refuse(self, asked: _Asked, length: float, reason: str) -> str:
        self._refused[asked] = (length, reason)
        return reason

    def _fit(self, room: Room, need: Need, length: float) -> dict[int, int] | None:
        reservation = self._reserved.get(room.worker.name)
        if reservation is None or self._now + length <= reservation.begins:
            return room.fit(need)
        return room.within(reservation.leaves).fit(need)

    def _start(self, item: Queued, worker: str, need: Need, devices: dict[int, int], split: bool) -> None:
        reservation = self._reserved.get(worker)
        length = math.inf if item.expected is None else item.expected
        if reservation is not None and self._now + length > reservation.begins:
            reservation.leaves.take(need, devices)
        self.starts.append(Start(item, worker, need, devices, split))
        self._hold(Running(item.run_id, item.owner, worker, need, devices, self._now, item.expected))
        self._going += 1

    def _hold(self, run: Running) -> None:
        room = self._rooms.get(run.worker)
        if room is not None:
            room.take(run.need, run.devices)
            self._holders[run.worker].append(run)

    def _wait(self, item: Queued, need: Need) -> str:
        """Reserve room for a run that does not fit now, where it can begin soonest; returns why it waits."""
        rooms = list(self._rooms.values())
        free = next((room for room in rooms if room.fit(need) is not None), None)
        if free is not None:
            held = self._reserved[free.worker.name]
            return f"room on {free.worker.name} is kept for run {held.run_id[:8]}, which needs {_asked(held.need)}"
        unreserved = [room for room in rooms if room.worker.name not in self._reserved]
        times = [found for room in unreserved if (found := self._soonest(room, need)) is not None]
        if times:
            begins, leaves = min(times, key=lambda found: found[0])
            leaves.take(need, leaves.fit(need) or {})
            self._reserved[leaves.worker.name] = _Reservation(item.run_id, need, begins, leaves)
        return f"needs {_asked(need)}: {shortage(need, rooms)}"

    def _soonest(self, room: Room, need: Need) -> tuple[float, Room] | None:
        """When a need fits on a worker as its runs end, and what is free there then."""
        if Room.whole(room.worker).fit(need) is None:
            return None
        later = room.copy()
        if later.fit(need) is not None:
            return self._now, later
        for run in sorted(self._holders[room.worker.name], key=lambda run: run.end(self._now)):
            later.take(run.need, run.devices, sign=-1)
            if later.fit(need) is not None:
                return run.end(self._now), later
        return None


def _later(item: Queued) -> str:
    at = time.strftime("%H:%M:%S UTC", time.gmtime(math.ceil(item.not_before)))
    return f"its worker was lost; the next attempt begins at {at}"


def _asked(need: Need) -> str:
    """What is told of a need: its GPUs, else all of it."""
    return ", ".join(map(str, need.gpus)) if need.gpus else str(need)
