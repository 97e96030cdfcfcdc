"""Passes over runs that really wait in Dagster's storage."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.storage.tags import PRIORITY_TAG

from mloc_dagster.definitions.instance import open_instance
from mloc_dagster.definitions.submit import job_origin
from mloc_dagster.placement.ledger import Ledger
from mloc_dagster.placement.queue import scheduler as module
from mloc_dagster.placement.queue.asked import NEEDS
from mloc_dagster.placement.queue.items import Policy
from mloc_dagster.placement.queue.scheduler import Scheduler
from mloc_dagster.placement.workers.need import Need
from mloc_dagster.placement.workers.room import Worker
from mloc_dagster.store.home import Home


def queue(instance: DagsterInstance, priority: int, **more: str) -> str:
    tags = {NEEDS: json.dumps(Need().as_dict()), "mloc/owner": "ann", PRIORITY_TAG: str(priority), **more}
    run = DagsterRun("noop", status=DagsterRunStatus.QUEUED, tags=tags, remote_job_origin=job_origin("noop"))
    return instance.run_storage.add_run(run).run_id


@pytest.mark.parametrize(
    "tags",
    [
        {"mloc/stage_needs": "[" * 100_000},
        {"mloc/needs": json.dumps({"cpu": 1000, "gpus": [{"type": "any", "count": 1, "memory": 10**400}]})},
        {"mloc/needs": json.dumps({"cpu": 1 << 70, "gpus": []})},
        {"mloc/owner": "o" * 1000},
        {PRIORITY_TAG: "x"},
    ],
)
def test_whatever_the_tags_of_one_run_say_others_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tags: dict[str, str]
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    launched: list[str] = []
    with open_instance(Home(tmp_path)) as instance:
        ledger = Ledger.of_instance(instance)
        ledger.register(socket.gethostname(), [Worker("one", 2000, 1 << 30)], 0.0)
        queue(instance, 0, **tags)
        other = queue(instance, 0)

        def launch(run: DagsterRun) -> bool:
            launched.append(run.run_id)
            return True

        scheduler = Scheduler(instance, ledger, Policy(), 3600.0, launch, lambda *_: False)
        for _ in scheduler.step(True):
            pass
        assert other in launched


def test_a_run_that_cannot_be_launched_is_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    tried: list[str] = []
    with open_instance(Home(tmp_path)) as instance:
        ledger = Ledger.of_instance(instance)
        ledger.register(socket.gethostname(), [Worker("one", 2000, 1 << 30)], 0.0)
        bad, good = queue(instance, 5), queue(instance, 0)

        def launch(run: DagsterRun) -> bool:
            tried.append(run.run_id)
            if run.run_id == bad:
                raise RuntimeError("a fault of this one run")
            return True

        scheduler = Scheduler(instance, ledger, Policy(), 3600.0, launch, lambda *_: False)
        for _ in range(2):
            for _ in scheduler.step(True):
                pass
        assert tried == [bad, good]


def test_nothing_starts_before_all_that_waits_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    monkeypatch.setattr(module, "_PAGE", 1)
    monkeypatch.setattr(module, "_TAKE_SECONDS", 0.002)
    launched: list[str] = []
    with open_instance(Home(tmp_path)) as instance:
        ledger = Ledger.of_instance(instance)
        ledger.register(socket.gethostname(), [Worker("one", 1000, 1 << 30)], 0.0)
        waiting = {queue(instance, priority=9 if number == 17 else 0): number for number in range(40)}

        def launch(run: DagsterRun) -> bool:
            launched.append(run.run_id)
            return True

        scheduler = Scheduler(instance, ledger, Policy(), 3600.0, launch, lambda *_: False)
        passes = 0
        while passes == 0 or scheduler.behind:
            assert not launched
            passes += 1
            for _ in scheduler.step(False):
                pass
        assert passes > 2
        assert [waiting[run_id] for run_id in launched] == [17]
