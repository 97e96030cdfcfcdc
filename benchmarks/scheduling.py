"""The queue: passes over 10,000 waiting runs, and a simulation: `python benchmarks/scheduling.py [--tasks N]`.

`live pass`: the daemon's whole pass over runs that really wait in Dagster's SQLite storage of a new home: look for runs
that came, decide, tell the reasons (tags, and what `mloc queue` shows). One run comes before each pass. The first
passes take all of them in, as those of a daemon do that was just started.

The simulation has a virtual clock and the order of `mloc_dagster.placement.queue` as it is. It plays the same tasks of
20 owners through that order, through first-in-first-out (what fits of the oldest begins; `strict`: nothing passes the
oldest) and through Dagster's own order (priority, then age), and prints for each: SLOs that were missed, the longest
wait of the largest tasks, and Jain's index of fairness (Jain, Chiu, Hawe 1984) over what owners got of their share.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import random
import socket
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus

from mloc_dagster.definitions.submit import job_origin
from mloc_dagster.placement.inventory import Device
from mloc_dagster.placement.queue.asked import NEEDS, SLO
from mloc_dagster.placement.queue.items import Policy, Queued, Running, Start
from mloc_dagster.placement.queue.order import Order
from mloc_dagster.placement.queue.scheduler import VIEW
from mloc_dagster.placement.queue.usage import Total
from mloc_dagster.placement.workers.need import WHOLE, GpuNeed, Need
from mloc_dagster.placement.workers.room import Room, Worker

GIB = 1 << 30
OWNERS = 20
TICK_SECONDS = 30.0
BIGGEST = 8
"""GPUs of the largest tasks: a whole worker."""
Decide = Callable[[float, dict[str, Queued], list[Running]], list[Start]]


@dataclass(frozen=True)
class Task:
    """A task and how long it really takes, in seconds."""

    item: Queued
    length: float


@dataclass
class Outcome:
    """What came of a simulation; times in seconds."""

    begun: dict[str, float] = field(default_factory=dict)
    missed: int = 0
    with_slo: int = 0
    longest_wait_of_biggest: float = 0.0
    longest_of_modest: float = 0.0
    """The same, of owners who in all ask for no more than their share; the tasks of others wait for one another."""
    fairness: float = 0.0
    seconds: float = 0.0
    used: float = 0.0
    """Part of the GPUs in use until the last task came."""

    def __str__(self) -> str:
        return (
            f"SLO missed {self.missed}/{self.with_slo}, longest wait of a task of {BIGGEST} GPUs "
            f"{self.longest_wait_of_biggest / 3600:.1f} h ({self.longest_of_modest / 3600:.1f} h of owners within "
            f"their share), fairness {self.fairness:.3f}, GPUs in use {self.used:.0%}, "
            f"{self.seconds:.0f} s of computing"
        )


def cluster() -> list[Worker]:
    """Eight workers of eight GPUs of two kinds, and two without any."""
    kinds = [("a100-80gb", 80)] * 5 + [("l4", 24)] * 3
    gpus = [
        Worker(f"gpu-{n}", 64 * WHOLE, 512 * GIB, tuple(Device(i, name, size * GIB) for i in range(8)))
        for n, (name, size) in enumerate(kinds)
    ]
    return [*gpus, *(Worker(f"cpu-{n}", 32 * WHOLE, 128 * GIB) for n in range(2))]


def tasks(count: int, seed: int, load: float = 1.0) -> list[Task]:
    """Mixed tasks: most small, some of a whole worker; a few owners send most; two in three have an estimate.

    They come in waves of twelve hours; `load` is the work that comes in the whole time by what the GPUs can do.
    """
    random_ = random.Random(seed)
    weights = [1 / (1 + n) for n in range(OWNERS)]
    sizes = [(0, 0.15), (1, 0.5), (2, 0.18), (4, 0.12), (BIGGEST, 0.05)]
    found, work = [], 0.0
    for number in range(count):
        gpus = random_.choices([size for size, _ in sizes], [part for _, part in sizes])[0]
        length = min(14_400.0, max(20.0, random_.lognormvariate(6.0, 1.1)))
        kind = random_.choices(["any", "a100-80gb", "l4"], [0.5, 0.35, 0.15])[0]
        need = Need(4 * WHOLE, 16 * GIB, (GpuNeed(kind, gpus),) if gpus else ())
        slo = (length * random_.uniform(1.5, 6) + 120) if random_.random() < 0.4 else None
        expected = length * random_.uniform(0.9, 1.6) if random_.random() < 0.66 else None
        owner = f"owner-{random_.choices(range(OWNERS), weights)[0]:02}"
        priority = random_.choices([0, 1, 5], [0.8, 0.15, 0.05])[0]
        found.append((Queued(f"{number:06}", owner, 0.0, need, priority, slo, expected), length))
        work += gpus * length
    span = work / 64 / load
    times = sorted(_moment(random_, span) for _ in found)
    return [Task(replace(item, submitted=at), length) for (item, length), at in zip(found, times, strict=True)]


def _moment(random_: random.Random, span: float) -> float:
    while True:
        moment = random_.uniform(0, span)
        if random_.uniform(0, 1.8) < 1 + 0.8 * math.sin(moment * 2 * math.pi / 43_200):
            return moment


def ours(policy: Policy, workers: Sequence[Worker]) -> Decide:
    """The order that the daemon follows."""
    order = Order(policy)

    def decide(now: float, waiting: dict[str, Queued], running: list[Running]) -> list[Start]:
        for item in waiting.values():
            if item.run_id not in order:
                order.add(item)
        starts = order.decide(now, workers, running).starts
        for start in starts:
            order.remove(start.item.run_id)
        return starts

    return decide


def in_line(key: Callable[[Queued], tuple[float, ...]], workers: Sequence[Worker], strict: bool = False) -> Decide:
    """A plain order: what fits begins, in the order of `key`; with `strict` nothing passes the first that does not."""

    def decide(now: float, waiting: dict[str, Queued], running: list[Running]) -> list[Start]:
        rooms = {worker.name: Room.whole(worker) for worker in workers}
        for run in running:
            rooms[run.worker].take(run.need, run.devices)
        starts, refused = [], set()
        for item in sorted(waiting.values(), key=key):
            if item.need in refused:
                continue
            start = _first_fit(item, rooms.values())
            if start is not None:
                rooms[start.worker].take(start.need, start.devices)
                starts.append(start)
            elif strict:
                break
            else:
                refused.add(item.need)
        return starts

    return decide


def _first_fit(item: Queued, rooms: Iterable[Room]) -> Start | None:
    for room in sorted(rooms, key=lambda room: (bool(room.shares) and not item.need.gpus, sum(room.shares))):
        devices = room.fit(item.need)
        if devices is not None:
            return Start(item, room.worker.name, item.need, devices)
    return None


def simulate(todo: Sequence[Task], workers: Sequence[Worker], decide: Decide) -> Outcome:
    """Play all tasks to their end on a virtual clock that moves from event to event, at most every TICK_SECONDS."""
    begun_at = time.perf_counter()
    coming = sorted((task.item.submitted, task.item.run_id) for task in todo)
    by_id = {task.item.run_id: task for task in todo}
    waiting: dict[str, Queued] = {}
    running: dict[str, Running] = {}
    ends: list[tuple[float, str]] = []
    outcome, log = Outcome(), []
    now, next_ = 0.0, 0
    while next_ < len(coming) or waiting or running:
        moments = [coming[next_][0]] if next_ < len(coming) else []
        now = max(now + TICK_SECONDS, min([*moments, *([ends[0][0]] if ends else [])]))
        while next_ < len(coming) and coming[next_][0] <= now:
            run_id = coming[next_][1]
            waiting[run_id] = replace(by_id[run_id].item)
            next_ += 1
        while ends and ends[0][0] <= now:
            running.pop(heapq.heappop(ends)[1])
        for start in decide(now, waiting, list(running.values())):
            item = waiting.pop(start.item.run_id)
            end = now + by_id[item.run_id].length
            running[item.run_id] = Running(
                item.run_id, item.owner, start.worker, start.need, start.devices, now, item.expected
            )
            heapq.heappush(ends, (end, item.run_id))
            log.append((by_id[item.run_id], now, end))
        assert running or not waiting or next_ < len(coming), "runs wait although nothing runs"
    return _judged(outcome, log, workers, coming[-1][0], time.perf_counter() - begun_at)


def _judged(
    outcome: Outcome, log: list[tuple[Task, float, float]], workers: Sequence[Worker], last: float, seconds: float
) -> Outcome:
    modest = _modest(log, Total(workers))
    for task, begun, end in log:
        item = task.item
        outcome.begun[item.run_id] = begun
        if item.slo is not None:
            outcome.with_slo += 1
            outcome.missed += end - item.submitted > item.slo
        if sum(gpu.count for gpu in item.need.gpus) == BIGGEST:
            outcome.longest_wait_of_biggest = max(outcome.longest_wait_of_biggest, begun - item.submitted)
            if item.owner in modest:
                outcome.longest_of_modest = max(outcome.longest_of_modest, begun - item.submitted)
    moments = [last * part / 10 for part in range(3, 11)]
    outcome.fairness = statistics.mean(_fairness(log, Total(workers), moment) for moment in moments)
    gpu_seconds = sum(
        gpu.count * max(0.0, min(end, last) - begun) for task, begun, end in log for gpu in task.item.need.gpus
    )
    outcome.used = gpu_seconds / (last * 64)
    outcome.seconds = seconds
    return outcome


def _modest(log: list[tuple[Task, float, float]], total: Total) -> set[str]:
    asked: dict[str, float] = {}
    for task, begun, end in log:
        asked[task.item.owner] = asked.get(task.item.owner, 0.0) + total.share(task.item.need) * (end - begun)
    return {owner for owner, work in asked.items() if work <= sum(asked.values()) / OWNERS}


def _fairness(log: list[tuple[Task, float, float]], total: Total, moment: float, window: float = 14_400.0) -> float:
    """Jain's index over owners of what each got in the hours before a moment, of its fair share of all that was given.

    The fair share is that of water filling: nobody is entitled to more than it had asked for.
    """
    got: dict[str, float] = {}
    asked: dict[str, float] = {}
    opening = max(0.0, moment - window)
    for task, begun, end in log:
        if task.item.submitted >= moment or end <= opening:
            continue
        owner, share = task.item.owner, total.share(task.item.need)
        got[owner] = got.get(owner, 0.0) + share * max(0.0, min(end, moment) - max(begun, opening))
        earliest = max(task.item.submitted, opening)
        could = min(moment, earliest + task.length) - earliest if begun > opening else min(end, moment) - opening
        asked[owner] = asked.get(owner, 0.0) + share * max(0.0, could)
    fair = _water_filled(asked, sum(got.values()))
    parts = [got[owner] / fair[owner] for owner in got if fair[owner] > 0]
    return sum(parts) ** 2 / (len(parts) * sum(part**2 for part in parts)) if parts and any(parts) else 1.0


def _water_filled(asked: dict[str, float], given: float) -> dict[str, float]:
    fair: dict[str, float] = {}
    left, waiting = given, sorted(asked, key=lambda owner: asked[owner])
    for position, owner in enumerate(waiting):
        fair[owner] = min(asked[owner], left / (len(waiting) - position))
        left -= fair[owner]
    return fair


def compare(count: int, seed: int) -> dict[str, Outcome]:
    """Play the same tasks through each order."""
    workers, todo = cluster(), tasks(count, seed)
    orders = {
        "ours": ours(Policy(), workers),
        "fifo": in_line(lambda item: (item.submitted,), workers),
        "fifo, strict": in_line(lambda item: (item.submitted,), workers, strict=True),
        "stock priority": in_line(lambda item: (-item.priority, item.submitted), workers),
    }
    return {name: simulate(todo, workers, decide) for name, decide in orders.items()}


def pass_milliseconds(count: int) -> list[float]:
    """CPU milliseconds of passes over `count` waiting runs: on a full cluster, and on one where some can begin."""
    workers = cluster()
    order = Order(Policy())
    todo = tasks(count + 200, seed=1)
    for task in todo[200:]:
        order.add(replace(task.item, submitted=task.item.submitted / 100))
    full: list[Running] = []
    starts = order.decide(3600.0, workers, full).starts
    running = [
        Running(s.item.run_id, s.item.owner, s.worker, s.need, s.devices, 3600.0, s.item.expected) for s in starts
    ]
    for start in starts:
        order.remove(start.item.run_id)
    for task in todo[: len(starts)]:
        order.add(replace(task.item, submitted=0.0))
    found = []
    for number in range(10):
        begun = time.process_time()
        order.decide(3601.0 + number, workers, running if number % 2 else running[: len(running) // 2])
        found.append((time.process_time() - begun) * 1000)
    return found


def live_pass_milliseconds(count: int, passes: int = 30) -> tuple[list[float], list[float]]:
    """Wall ms of passes over `count` queued runs on a full cluster: those that take them in, and the others."""
    with tempfile.TemporaryDirectory(prefix="mloc-bench-") as folder:
        os.environ |= {"MLOC_HOME": folder, "DAGSTER_HOME": f"{folder}/dagster"}
        from mloc_dagster.definitions.instance import open_instance
        from mloc_dagster.placement.ledger import Ledger
        from mloc_dagster.placement.queue.scheduler import Scheduler
        from mloc_dagster.store.home import Home

        todo = [task.item for task in tasks(count + passes, seed=1) if task.item.need.gpus]
        todo = (todo * 2)[: count + passes]
        with open_instance(Home.current()) as instance:
            ledger = Ledger.of_instance(instance)
            workers = [worker for worker in cluster() if worker.devices]
            ledger.register(socket.gethostname(), workers, 0.0)
            for worker in workers:  # full: one run each that goes on
                whole = Need(worker.cpu, worker.memory, (GpuNeed("any", len(worker.devices)),))
                ledger.claim(str(uuid.uuid4()), "before", whole, 3600.0, worker=worker.name)
            for item in todo[:count]:
                _queue(instance, item)
            scheduler = Scheduler(instance, ledger, Policy(), 3600.0, lambda _run: False, lambda *_: False)
            scheduler._look_after_leases = lambda: None  # the leases above have no runs

            def one() -> float:
                begun = time.perf_counter()
                for _ in scheduler.step(True):
                    pass
                return (time.perf_counter() - begun) * 1000

            first = [one()]
            while scheduler.behind:
                first.append(one())
            found = []
            for item in todo[count:]:
                _queue(instance, item)
                found.append(one())
            waiting = ledger.saved(VIEW)["waiting"]
            assert waiting == count + passes, f"{waiting} wait"
            return first, found


def _queue(instance: DagsterInstance, item: Queued) -> None:
    """Store a run that waits, with the tags of one that was submitted."""
    tags = {NEEDS: json.dumps(item.need.as_dict()), "mloc/owner": item.owner, "mloc/task": item.run_id}
    tags |= {"dagster/priority": str(item.priority)} | ({SLO: f"{item.slo:g}"} if item.slo else {})
    tags["mloc/project"] = "default"
    run = DagsterRun("bench", status=DagsterRunStatus.QUEUED, tags=tags, remote_job_origin=job_origin("bench"))
    instance.run_storage.add_run(run)


def main() -> None:
    """Measure, simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000, help="tasks that are simulated, and that wait in a pass")
    parser.add_argument("--seed", type=int, default=7, help="of the tasks")
    options = parser.parse_args()
    found = pass_milliseconds(options.tasks)
    print(
        f"pass over {options.tasks} waiting runs, CPU ms: median {statistics.median(found):.0f}, worst {max(found):.0f}"
    )
    first, live = live_pass_milliseconds(options.tasks)
    print(
        f"live pass over {options.tasks} queued runs, ms: median {statistics.median(live):.0f}, worst {max(live):.0f}; "
        f"{len(first)} took them in, worst {max(first):.0f}",
        flush=True,
    )
    for name, outcome in compare(options.tasks, options.seed).items():
        print(f"{name}: {outcome}")


if __name__ == "__main__":
    main()
