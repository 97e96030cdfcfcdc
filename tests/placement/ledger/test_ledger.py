"""Claims: all or nothing, never twice, given back, reclaimed."""

from __future__ import annotations

from mloc_dagster.placement.ledger import Ledger
from mloc_dagster.placement.workers.need import WHOLE, GpuNeed, Need
from mloc_dagster.placement.workers.room import Worker
from tests.placement.ledger.conftest import GIB, GPUS, WORKERS


def gpus(count: int, share: int = WHOLE, cpu: int = WHOLE, memory: int = 0) -> Need:
    return Need(cpu, memory, (GpuNeed("a100-80gb", count, 0, share),) if count else ())


def claim(ledger: Ledger, run_id: str, need: Need, worker: str = "gpu-a", seconds: float = 60) -> int | None:
    lease = ledger.claim(run_id, "ann", need, seconds, worker=worker)
    return lease.token if lease else None


def test_several_devices_are_given_all_or_none(ledger: Ledger) -> None:
    first = ledger.claim("one", "ann", gpus(3), 60, worker="gpu-a", expected=12.5)
    assert first is not None and dict(first.devices) == {0: WHOLE, 1: WHOLE, 2: WHOLE}
    assert claim(ledger, "two", gpus(2)) is None
    assert ledger.snapshot()[1] == [first]
    assert claim(ledger, "two", gpus(1))
    assert ledger.release(first.token) and not ledger.release(first.token)
    assert claim(ledger, "three", gpus(3))


def test_shares_of_a_device_add_up_to_one(ledger: Ledger) -> None:
    assert claim(ledger, "whole", gpus(3))
    assert all(claim(ledger, f"part-{n}", gpus(1, share=400)) for n in range(2))
    assert claim(ledger, "third", gpus(1, share=400)) is None
    assert claim(ledger, "rest", gpus(1, share=200))
    held = [lease.devices for lease in ledger.snapshot()[1]][1:]
    assert held == [{3: 400}, {3: 400}, {3: 200}]


def test_cores_and_memory_are_counted(ledger: Ledger) -> None:
    assert claim(ledger, "a", gpus(0, cpu=3 * WHOLE), "cpu-b")
    assert claim(ledger, "b", gpus(0, cpu=2 * WHOLE), "cpu-b") is None
    assert claim(ledger, "c", gpus(0, memory=12 * GIB), "cpu-b")
    assert claim(ledger, "d", gpus(0, cpu=0, memory=5 * GIB), "cpu-b") is None


def test_a_run_holds_one_lease_and_tokens_are_never_used_again(ledger: Ledger) -> None:
    first = claim(ledger, "one", gpus(1))
    assert first and claim(ledger, "one", gpus(1)) is None
    assert ledger.release(first)
    second = claim(ledger, "one", gpus(1))
    assert second and second > first
    assert not ledger.renew(first, 60) and not ledger.release(first)
    assert ledger.renew(second, 60)


def test_a_silent_lease_expires_but_holds_until_it_is_released(ledger: Ledger) -> None:
    token = claim(ledger, "one", gpus(4), seconds=-1)
    assert token and [lease.token for lease in ledger.expired()] == [token]
    assert claim(ledger, "two", gpus(1)) is None
    assert ledger.renew(token, 60) and not ledger.expired()
    assert ledger.release(token) and claim(ledger, "two", gpus(1)) and not ledger.renew(token, 60)


def test_a_worker_out_of_service_takes_nothing_and_keeps_that_over_a_restart(ledger: Ledger) -> None:
    assert ledger.set_state("gpu-a", "cordoned") and not ledger.set_state("gpu-z", "cordoned")
    assert claim(ledger, "one", gpus(1)) is None and claim(ledger, "two", gpus(0), "cpu-b")
    ledger.register("here", WORKERS, load=0.5)
    states = {seen.worker.name: (seen.worker.state, seen.load) for seen in ledger.snapshot()[0]}
    assert states == {"gpu-a": ("cordoned", 0.5), "cpu-b": ("ready", 0.5)}
    assert ledger.set_state("gpu-a", "ready") and claim(ledger, "one", gpus(1))
    assert claim(ledger, "three", gpus(1), "nowhere") is None


def test_a_worker_that_goes_away_is_removed_when_nothing_runs_there(ledger: Ledger) -> None:
    token = claim(ledger, "one", gpus(1))
    other = Worker("far", WHOLE, GIB)
    ledger.register("elsewhere", [other], load=0.0)
    ledger.register("here", WORKERS[1:], load=0.0)
    assert {s.worker.name: s.worker.state for s in ledger.snapshot()[0]} == {
        "gpu-a": "gone", "cpu-b": "ready", "far": "ready",
    }  # fmt: skip
    assert token and claim(ledger, "two", gpus(1)) is None
    ledger.register("here", WORKERS, load=0.0)  # back, as after a typing mistake in workers.yaml
    assert ledger.snapshot()[0][0].worker.state == "ready"
    ledger.register("here", WORKERS[1:], load=0.0)
    ledger.release(token)
    ledger.register("here", WORKERS[1:], load=0.0)
    assert [seen.worker for seen in ledger.snapshot()[0]] == [WORKERS[1], other]


def test_all_that_is_known_of_a_lease_is_kept(ledger: Ledger) -> None:
    need = gpus(2, cpu=1500, memory=GIB)
    lease = ledger.claim("one", "ann", need, 60, worker="gpu-a", expected=7.5)
    seen, leases = ledger.snapshot()
    assert leases == [lease] and seen[1].worker.devices == GPUS
    assert leases[0].need == need and leases[0].expected == 7.5 and leases[0].expires_at - leases[0].taken_at == 60


def test_values_are_kept(url: str) -> None:
    Ledger(url).save("queue", {"a": [1, "ü"]})
    Ledger(url).save("queue", {"a": [2]})
    assert Ledger(url).saved("queue") == {"a": [2]} and Ledger(url).saved("none") is None
