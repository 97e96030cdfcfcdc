"""The watch over a lease, in the process that uses it."""

from __future__ import annotations

import os
import threading

import pytest
from dagster import DagsterRun

from mloc_dagster.placement.ledger import Ledger
from mloc_dagster.placement.ledger.grant import LEASE, Grant, LeaseLost, held
from mloc_dagster.placement.workers.need import GpuNeed, Need
from tests.placement.ledger.conftest import GPUS, WORKERS


def granted(ledger: Ledger, seconds: float) -> Grant:
    lease = ledger.claim("run-1", "ann", Need(gpus=(GpuNeed("any", 2),)), seconds, worker="gpu-a")
    assert lease is not None
    return Grant.of_lease(lease, WORKERS[0], seconds)


def test_it_goes_to_the_run_by_its_tag_and_to_no_other(ledger: Ledger) -> None:
    grant = granted(ledger, 60)
    assert grant.devices == GPUS[:2]
    run = DagsterRun(job_name="job", run_id="run-1", tags=grant.as_tag())
    assert Grant.of_run(run) == grant
    assert Grant.of_run(DagsterRun(job_name="job", run_id="run-2", tags=grant.as_tag())) is None
    assert Grant.of_run(DagsterRun(job_name="job", run_id="run-1")) is None


def test_a_lease_that_is_used_is_renewed_and_given_back(ledger: Ledger) -> None:
    grant = granted(ledger, 1.0)
    told: list[str] = []
    with held(ledger, grant, told.append):
        first = ledger.snapshot()[1][0].expires_at
        assert _until(lambda: ledger.snapshot()[1][0].expires_at > first + 0.5)
    assert ledger.snapshot()[1] == [] and not told


def test_its_holder_is_told_once_when_it_is_gone(ledger: Ledger) -> None:
    grant = granted(ledger, 0.6)
    told: list[str] = []
    with held(ledger, grant, told.append):
        ledger.release(grant.token)
        assert _until(lambda: bool(told))
    assert len(told) == 1 and "others may have it" in told[0]


def test_a_run_that_comes_too_late_does_not_begin(ledger: Ledger) -> None:
    grant = granted(ledger, 60)
    ledger.release(grant.token)
    with pytest.raises(LeaseLost, match="took too long to start"), held(ledger, grant, print):
        raise AssertionError("it began")


def test_a_fork_waits_for_the_watch_and_its_child_can_go_on(ledger: Ledger) -> None:
    with held(ledger, granted(ledger, 0.06), print):  # talks to the database all the time
        for _ in range(20):
            child = os.fork()
            if child == 0:
                ledger.snapshot()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0


def _until(condition) -> bool:
    waiting = threading.Event()
    return any(condition() or waiting.wait(0.05) for _ in range(200))


@pytest.mark.parametrize(
    "text",
    [
        "nonsense", "[" * 100_000, "[]", '{"run_id": "r"}',
        '{"token": "1", "run_id": "r", "worker": "w", "devices": [], "seconds": 60}',
        '{"token": 1, "run_id": "r", "worker": "w", "devices": [], "seconds": -1}',
        '{"token": 1, "run_id": "r", "worker": "w", "devices": [], "seconds": 60, "shares": [1]}',
        '{"token": 1, "run_id": "r", "worker": "w", "devices": [{"index": 0, "name": 7, "memory": 1}], "seconds": 60}',
    ],
)  # fmt: skip
def test_a_tag_that_cannot_be_read_is_no_grant(text: str) -> None:
    assert Grant.of_run(DagsterRun(job_name="j", run_id="r", tags={LEASE: text})) is None
