"""`mloc queue` and `mloc workers`: what waits and why, who holds what, workers in and out of service."""

from __future__ import annotations

import json
import time

import pytest

from mloc_dagster.placement.inventory import Device
from mloc_dagster.placement.ledger import Ledger
from mloc_dagster.placement.workers.need import GpuNeed, Need
from mloc_dagster.placement.workers.room import Worker
from tests.cli.conftest import Mloc

GIB = 1 << 30


@pytest.fixture
def ledger(mloc: Mloc) -> Ledger:
    """The ledger of the home, with one worker on which one run holds a GPU."""
    assert mloc.here("list").code == 0
    found = Ledger(f"sqlite:///{mloc.home.dagster / 'ledger.db'}")
    gpus = (Device(0, "a100-80gb", 80 * GIB), Device(1, "a100-80gb", 80 * GIB))
    found.register("here", [Worker("gpu-a", 8000, 64 * GIB, gpus)], load=0.25)
    assert found.claim("0123456789", "ann", Need(1500, GIB, (GpuNeed("any", 1, share=500),)), 60, worker="gpu-a")
    return found


def test_workers_their_load_and_who_holds_what(mloc: Mloc, ledger: Ledger) -> None:
    answer = mloc.here("workers")
    assert answer.code == 0
    for part in ("gpu-a", "ready", "1.5/8", "1.0 GiB/64.0 GiB", "0 a100-80gb 0.5/1", "25%", "01234567 ann"):
        assert part in answer.out
    [row] = json.loads(mloc.here("workers", "--json").out)
    assert row["devices"][0]["held"] == 0.5 and row["leases"][0]["devices"] == {"0": 0.5} and not row["silent"]


def test_a_worker_goes_out_of_service_and_back(mloc: Mloc, ledger: Ledger) -> None:
    def state() -> str:
        return ledger.snapshot()[0][0].worker.state

    assert mloc.here("workers", "cordon", "gpu-a").out == "gpu-a is cordoned\n" and state() == "cordoned"
    assert mloc.here("workers", "uncordon", "gpu-a").code == 0 and state() == "ready"
    assert mloc.here("workers", "drain", "--no-wait", "gpu-a").code == 0 and state() == "draining"
    wrong = mloc.here("workers", "drain", "gpu-z")
    assert wrong.code == 2 and "there is no worker 'gpu-z'" in wrong.errors and "workers: gpu-a" in wrong.errors


def test_drain_waits_for_what_runs_there(mloc: Mloc, ledger: Ledger) -> None:
    process = mloc.start("workers", "drain", "gpu-a")
    try:
        deadline = time.monotonic() + 60
        while ledger.snapshot()[0][0].worker.state != "draining" and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)
        assert process.poll() is None, "it did not wait"
        ledger.release(ledger.snapshot()[1][0].token)
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0 and out == "gpu-a is draining\ngpu-a is empty\n"
    finally:
        process.kill()


def test_the_queue(mloc: Mloc, ledger: Ledger) -> None:
    assert "nothing waits" in mloc.here("queue").out
    row = {
        "run_id": "fedcba9876", "task": "tune", "owner": "bob", "priority": 2, "submitted": time.time() - 600,
        "reason": "needs 2 × a100-80gb GPU: 1 free on gpu-a", "since": 0,
    }  # fmt: skip
    ledger.save("queue", {"waiting": 7, "reasons": {row["reason"]: 7}, "first": [row], "at": 0})
    answer = mloc.here("queue")
    for part in ("fedcba98", "tune", "bob", "10 min", "needs 2 × a100-80gb GPU", "and 6 more"):
        assert part in answer.out
    assert "no daemon runs on this machine" in answer.errors
    assert json.loads(mloc.here("queue", "--json").out)["first"] == [row]
