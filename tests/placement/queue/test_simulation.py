"""The order at work: many tasks, owners and sizes on a virtual clock, against plain orders."""

from __future__ import annotations

import pytest

from benchmarks.scheduling import compare, pass_milliseconds, tasks


def test_a_pass_over_ten_thousand_waiting_runs_is_quick() -> None:
    assert min(pass_milliseconds(10_000)) < 300


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fair_without_starvation_and_with_fewer_missed_slos() -> None:
    count = 2_000
    found = compare(count, seed=7)
    ours = found.pop("ours")
    assert len(ours.begun) == count
    assert ours.fairness >= 0.9 and all(ours.fairness > other.fairness for other in found.values())
    assert all(ours.missed < other.missed for other in found.values()), {n: str(o) for n, o in found.items()}
    worst = {name: other.longest_of_modest for name, other in found.items()}
    assert ours.longest_of_modest < min(worst["stock priority"], worst["fifo, strict"])
    assert ours.longest_of_modest < 1.25 * worst["fifo"], "age alone decides there"


def test_the_same_seed_gives_the_same_tasks() -> None:
    assert tasks(50, seed=3) == tasks(50, seed=3) != tasks(50, seed=4)
