"""The order: what begins, what waits, and why."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from mloc_dagster.placement.inventory import Device
from mloc_dagster.placement.queue.items import Decisions, Policy, Queued, Running
from mloc_dagster.placement.queue.order import Order
from mloc_dagster.placement.workers.need import WHOLE, GpuNeed, Need
from mloc_dagster.placement.workers.room import Worker

GIB = 1 << 30
A100 = tuple(Device(index, "a100-80gb", 80 * GIB) for index in range(4))
GPU = Worker("gpu-a", 64 * WHOLE, 256 * GIB, A100)
CPU = Worker("cpu-b", 4 * WHOLE, 16 * GIB)
NOW = 1_000_000.0


def gpus(count: int, kind: str = "any", **more: int) -> Need:
    return Need(gpus=(GpuNeed(kind, count, **more),))


def item(run_id: str, need: Need | None = None, owner: str = "ann", ago: float = 0.0, **more) -> Queued:
    return Queued(run_id, owner, NOW - ago, need or gpus(1), **more)


def holding(run_id: str, count: int, ends: float | None, owner: str = "zoe", first: int = 0) -> Running:
    """A run that holds devices from `first` on and should end in so many seconds."""
    devices = {first + n: WHOLE for n in range(count)}
    return Running(run_id, owner, "gpu-a", gpus(count), devices, NOW - 100, None if ends is None else 100 + ends)


def decide(
    items: list[Queued], running: list[Running] | None = None, workers: tuple[Worker, ...] = (GPU,), **policy
) -> Decisions:
    order = Order(Policy(**policy))
    for one in items:
        order.add(one)
    return order.decide(NOW, workers, running or [])


def begun(decisions: Decisions) -> list[str]:
    return [start.item.run_id for start in decisions.starts]


def reasons(decisions: Decisions) -> dict[str, str]:
    return {one.run_id: reason for one, reason in decisions.waiting}


def test_priority_then_slo_then_age() -> None:
    items = [
        item("old", ago=50),
        item("older", ago=60),
        item("urgent", ago=30, slo=100, expected=10),
        item("more urgent", ago=30, slo=100, expected=60),
        item("missed", ago=30, slo=20),
        item("high", priority=1),
    ]
    workers = (Worker("gpu-a", 64 * WHOLE, GIB, tuple(Device(n, "l4", 24 * GIB) for n in range(9))),)
    assert begun(decide(items, workers=workers)) == ["high", "more urgent", "urgent", "older", "old", "missed"]


def test_an_slo_that_is_far_away_is_no_reason_to_come_first() -> None:
    assert begun(decide([item("first", ago=9), item("slo", ago=8, slo=3600)])) == ["first", "slo"]


def test_owners_take_turns_and_weights_give_more_turns() -> None:
    items = [item(f"ann-{n}", ago=100 - n) for n in range(20)]
    items += [item(f"bob-{n}", owner="bob", ago=1) for n in range(20)]
    assert Counter(name[:3] for name in begun(decide(items))) == {"ann": 2, "bob": 2}
    workers = (Worker("gpu-a", 64 * WHOLE, GIB, tuple(Device(n, "l4", 24 * GIB) for n in range(8))),)
    weighed = decide(items, workers=workers, weights={"bob": 3})
    assert Counter(name[:3] for name in begun(weighed)) == {"ann": 2, "bob": 6}


def test_who_has_used_less_lately_comes_first() -> None:
    order = Order(Policy(half_life=1000))
    order.decide(NOW - 500, [GPU], [holding("x", 4, None, owner="ann")])
    order.decide(NOW, [GPU], [holding("x", 4, None, owner="ann")])
    order.add(item("ann", ago=10))
    order.add(item("bob", owner="bob"))
    assert begun(order.decide(NOW, [GPU], [])) == ["bob", "ann"]


def test_waiting_counts_as_priority() -> None:
    items = [item("high", ago=0, priority=2, need=gpus(4)), item("low", ago=301, need=gpus(4))]
    assert begun(decide(items, aging=200)) == ["high"]
    assert begun(decide([items[0], item("low", ago=601, need=gpus(4))], aging=200)) == ["low"]


def test_a_large_run_gets_the_room_that_becomes_free_and_small_ones_fit_in_before() -> None:
    running = [holding("x", 2, 100), holding("y", 1, 50, first=2)]
    items = [
        item("large", gpus(4), ago=10),
        item("too long", ago=9, expected=101),
        item("unknown", ago=8),
        item("in time", ago=7, expected=99),
    ]
    found = decide(items, running)
    assert begun(found) == ["in time"]
    assert reasons(found) == {
        "large": "needs 4 × any GPU: 1 free on gpu-a",
        "too long": "room on gpu-a is kept for run large, which needs 4 × any GPU",
        "unknown": "room on gpu-a is kept for run large, which needs 4 × any GPU",
    }


def test_what_a_reservation_leaves_may_be_used_for_long() -> None:
    found = decide(
        [item("large", gpus(3), ago=10), item("long", ago=9), item("another", ago=8)], [holding("x", 2, 100)]
    )
    assert begun(found) == ["long"] and list(reasons(found)) == ["large", "another"]


def test_a_late_run_may_end_at_any_moment() -> None:
    found = decide([item("large", gpus(4), ago=10), item("small", ago=9, expected=5)], [holding("x", 2, -50)])
    assert begun(found) == []


def test_other_workers_are_not_kept_for_it() -> None:
    other = Worker("gpu-c", 8 * WHOLE, 64 * GIB, A100[:1])
    found = decide([item("large", gpus(4), ago=10), item("small", ago=9)], [holding("x", 2, 100)], (GPU, other))
    assert [(start.item.run_id, start.worker) for start in found.starts] == [("small", "gpu-c")]


def test_cpu_work_keeps_off_gpu_workers_while_a_cpu_worker_has_room() -> None:
    items = [item(f"cpu-{n}", Need(3 * WHOLE), ago=10 - n) for n in range(2)]
    found = decide(items, workers=(GPU, CPU))
    assert [(start.item.run_id, start.worker) for start in found.starts] == [("cpu-0", "cpu-b"), ("cpu-1", "gpu-a")]


def test_an_optional_gpu_is_waited_for_only_where_there_is_one() -> None:
    asks = Need(gpus=(GpuNeed("any", 1),), optional=True)
    full = [holding("x", 4, None)]
    assert reasons(decide([item("a", asks)], full, (GPU, CPU))) == {"a": "needs 1 × any GPU: 0 free on gpu-a"}
    alone = decide([item("a", asks)], [], (CPU,))
    assert [(start.worker, dict(start.devices), start.need) for start in alone.starts] == [("cpu-b", {}, Need())]


def test_cores_and_memory_beyond_every_worker_take_a_whole_one_but_gpus_are_not_cut() -> None:
    found = decide([item("big", Need(100 * WHOLE, 999 * GIB)), item("six", gpus(6))], workers=(CPU,))
    assert [start.need for start in found.starts] == [Need(CPU.cpu, CPU.memory)]
    assert reasons(found) == {"six": "needs 6 × any GPU, which no worker has"}


def test_a_worker_out_of_service_takes_nothing() -> None:
    cordoned = Worker("gpu-a", GPU.cpu, GPU.memory, A100, "cordoned")
    found = decide([item("a")], workers=(cordoned, CPU))
    assert reasons(found) == {"a": "needs 1 × any GPU: the workers that have it take no new runs"}


def test_a_limit_on_all_runs() -> None:
    found = decide([item("a", ago=1), item("b")], [holding("x", 1, None)], most=2)
    assert begun(found) == ["a"] and "max_concurrent_runs" in reasons(found)["b"]


def test_devices_by_kind_and_memory_small_ones_first() -> None:
    mixed = (Device(0, "h100", 80 * GIB), Device(1, "l4", 24 * GIB), Device(2, "a100-40gb", 40 * GIB))
    worker = Worker("gpu-a", 64 * WHOLE, GIB, mixed)
    for need, expected in [
        (gpus(1), {1: WHOLE}),
        (gpus(1, memory=30 * GIB), {2: WHOLE}),
        (gpus(1, "a100"), {2: WHOLE}),
        (Need(gpus=(GpuNeed("l4", 1), GpuNeed("any", 1))), {1: WHOLE, 2: WHOLE}),
    ]:
        [start] = decide([item("a", need)], workers=(worker,)).starts
        assert dict(start.devices) == expected


def test_the_largest_begins_although_small_ones_of_higher_priority_never_stop_coming() -> None:
    """The wait is bounded: after so many steps of aging as priorities differ by, nothing passes it any more."""
    order, running, now = Order(Policy(aging=600)), {}, NOW
    order.add(item("large", gpus(4)))
    for minute in range(300):
        now = NOW + minute * 60
        running = {name: run for name, run in running.items() if run.started + 300 > now}
        for number in range(2):  # each lasts 5 minutes: more than four GPUs can do
            name = f"{minute}-{number}"
            order.add(Queued(name, f"owner-{number}", now, gpus(1), priority=3, expected=300))
        for start in order.decide(now, [GPU], list(running.values())).starts:
            order.remove(start.item.run_id)
            if start.item.run_id == "large":
                assert now - NOW <= 4 * 600 + 300
                return
            running[start.item.run_id] = Running(
                start.item.run_id, start.item.owner, start.worker, start.need, start.devices, now, 300
            )
    raise AssertionError("it never began")


NEEDS = st.builds(
    lambda cpu, memory, count, share, kind: Need(
        cpu * 500, memory * GIB, (GpuNeed(kind, count, 0, share),) if count else ()
    ),
    st.integers(1, 20), st.integers(0, 40), st.integers(0, 5), st.sampled_from([250, 500, WHOLE]),
    st.sampled_from(["any", "a100", "l4"]),
)  # fmt: skip
ITEMS = st.builds(
    lambda owner, ago, need, priority, slo, expected: (owner, ago, need, priority, slo, expected),
    st.sampled_from("abc"), st.floats(0, 1e5), NEEDS, st.integers(-2, 5),
    st.none() | st.floats(1, 1e5), st.none() | st.floats(0, 1e5),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(ITEMS, max_size=30))
def test_never_more_than_there_is_and_no_run_is_forgotten(given_items: list[tuple]) -> None:
    mixed = Worker("gpu-c", 6 * WHOLE, 32 * GIB, (Device(0, "l4", 24 * GIB), Device(1, "a100-40gb", 40 * GIB)))
    workers, order, running = (GPU, CPU, mixed), Order(Policy()), []
    items = [
        Queued(str(number), owner, NOW - ago, need, priority, slo, expected)
        for number, (owner, ago, need, priority, slo, expected) in enumerate(given_items)
    ]
    for one in items:
        order.add(one)
    for pass_ in range(3):
        found = order.decide(NOW + pass_, workers, running)
        names = begun(found) + list(reasons(found))
        assert sorted(names) == sorted(order) and all(reasons(found).values())
        for start in found.starts:
            order.remove(start.item.run_id)
            running.append(
                Running(
                    start.item.run_id, "a", start.worker, start.need, start.devices, NOW + pass_, start.item.expected
                )
            )
        for worker in workers:
            held = [run for run in running if run.worker == worker.name]
            shares: Counter[int] = Counter()
            for run in held:
                shares.update(run.devices)
                assert len(run.devices) == sum(gpu.count for gpu in run.need.gpus)
            assert max(shares.values(), default=0) <= WHOLE
            assert sum(run.need.cpu for run in held) <= worker.cpu
            assert sum(run.need.memory for run in held) <= worker.memory
    assert not pass_ or not found.starts, "what could begin began in an earlier pass"


def test_a_further_attempt_waits_for_its_moment_and_says_so() -> None:
    soon = item("soon", ago=500, priority=9, not_before=NOW + 40)
    decisions = decide([soon, item("other")])
    assert begun(decisions) == ["other"]
    assert reasons(decisions) == {"soon": "its worker was lost; the next attempt begins at 13:47:20 UTC"}
    due = item("due", not_before=NOW)
    assert begun(decide([due, item("other", ago=5)])) == ["other", "due"]


def test_a_further_attempt_begins_elsewhere_where_that_is_possible() -> None:
    other = Worker("gpu-b", 64 * WHOLE, 256 * GIB, A100)
    [start] = decide([item("again", avoid="gpu-a")], workers=(GPU, other)).starts
    assert start.worker == "gpu-b"
    [start] = decide([item("again", avoid="gpu-a")], workers=(GPU, CPU)).starts
    assert start.worker == "gpu-a", "no other one has a GPU"
