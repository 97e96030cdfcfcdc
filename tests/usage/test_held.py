"""What a run held, as its tags tell it: granted by the queue, or taken where there is none."""

from __future__ import annotations

import json

import pytest
from dagster import DagsterRun

from mloc_dagster.placement import inventory
from mloc_dagster.placement.inventory import Device
from mloc_dagster.placement.ledger.grant import LEASE, Grant
from mloc_dagster.placement.ledger.ledger import Lease
from mloc_dagster.placement.queue.asked import NEEDS
from mloc_dagster.placement.workers.need import GpuNeed, Need
from mloc_dagster.placement.workers.room import Worker
from mloc_dagster.usage.held import HELD, Held, held_by, note_held
from tests.usage.conftest import Past

GPUS = tuple(Device(index, "a100-80gb", 80 << 30) for index in range(4))


def test_the_grant_of_the_queue_tells_shares_and_cores() -> None:
    need = Need(cpu=8000, gpus=(GpuNeed("a100-80gb", 2, share=500),))
    lease = Lease(7, "r", "ann", "w", need, {1: 500, 3: 500}, 0.0, 1.0)
    tag = Grant.of_lease(lease, Worker("w", 16_000, 1 << 40, GPUS), 60.0).as_tag()
    assert held_by(DagsterRun(job_name="j", run_id="r", tags=tag)) == Held((("a100-80gb", 1000),), 8000)
    copied = DagsterRun(job_name="j", run_id="another", tags=tag)
    assert held_by(copied) == Held((), 1000)


def test_a_grant_of_before_had_whole_devices() -> None:
    old = {"token": 1, "run_id": "r", "worker": "w", "devices": [vars(GPUS[0])], "seconds": 60.0}
    tags = {LEASE: json.dumps(old), NEEDS: json.dumps(Need(cpu=2000).as_dict())}
    assert held_by(DagsterRun(job_name="j", run_id="r", tags=tags)) == Held((("a100-80gb", 1000),), 2000)


def test_a_run_without_the_queue_notes_the_devices_that_it_takes(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    need = json.dumps(Need(cpu=1000, gpus=(GpuNeed("a100", 2),)).as_dict())
    runs = past.instance.run_storage
    run = runs.add_run(DagsterRun(job_name="j", tags={NEEDS: need}))
    note_held(past.instance, run)
    assert HELD not in past.instance.get_runs()[0].tags  # there is no GPU here
    monkeypatch.setattr(inventory, "gpus", lambda: GPUS)
    on_cpu = runs.add_run(DagsterRun(job_name="j", tags={NEEDS: need, "mloc/on": "cpu"}))
    for one in (run, on_cpu):
        note_held(past.instance, one)
    found = {one.run_id: held_by(one) for one in past.instance.get_runs()}
    assert found[run.run_id] == Held((("a100-80gb", 2000),), 1000) and found[on_cpu.run_id] == Held((), 1000)
