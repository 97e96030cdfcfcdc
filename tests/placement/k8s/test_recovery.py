"""Runs whose stages are Jobs: cancelled, killed, with a server that goes away; no task is lost, none is run twice."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRunStatus

from mloc_dagster.definitions.replay import next_attempt_id
from mloc_dagster.definitions.submit import submit_file
from mloc_dagster.placement.ledger import Ledger
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_file
from mloc_dagster.store.home import Home
from tests.cli.conftest import processes_of
from tests.definitions.conftest import NAP, get, nap, status, write
from tests.definitions.test_daemon import daemon, queue, queued_home
from tests.definitions.test_launcher import worker_pid
from tests.kubernetes_api import Cluster
from tests.waiting import wait_for

__all__ = ["nap", "queue", "queued_home"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def started(
    instance: DagsterInstance, home: Home, tmp_path: Path, nap: None, declare: Callable, cluster: Cluster
) -> Callable[[float], str]:
    """Submit a nap of so many seconds; gives its run, once it naps."""
    declare()

    def do(seconds: float) -> str:
        path = write(tmp_path / "nap.yaml", NAP, seconds=seconds)
        run_id = submit_file(instance, home, compile_plan(load_file(path)))
        wait_for(lambda: naps(cluster) or get(instance, run_id).is_finished, "the nap", 60)
        assert not get(instance, run_id).is_finished, logged(instance, run_id)
        return run_id

    return do


def naps(cluster: Cluster) -> bool:
    """Whether the stage of a pod has begun: it has written down who it is."""
    return any(cluster.folder.glob("*/volume-work/work/*/pids"))


def logged(instance: DagsterInstance, run_id: str) -> str:
    return "\n".join(entry.user_message for entry in instance.all_logs(run_id))


def slept(home: Home, run_id: str) -> bool:
    text = (home.run_folder(run_id, "nap") / "responses.json").read_text("utf-8")
    return json.loads(text)["result"] == {"slept": True}


def test_cancel_takes_less_than_ten_seconds_and_leaves_nothing(
    instance: DagsterInstance, started: Callable[[float], str], cluster: Cluster
) -> None:
    run_id = started(300)
    begun = time.monotonic()
    instance.run_coordinator.cancel_run(run_id)
    assert status(instance, run_id) is DagsterRunStatus.CANCELED
    assert time.monotonic() - begun < 10
    wait_for(lambda: not (cluster.jobs() or cluster.pods() or cluster.secrets()), "all to go", 5)
    assert Ledger.of_instance(instance).snapshot()[1] == []


def test_a_run_whose_worker_is_killed_goes_on_in_the_same_job(
    instance: DagsterInstance, home: Home, started: Callable[[float], str], cluster: Cluster
) -> None:
    run_id = started(30)
    os.kill(worker_pid(instance, run_id), signal.SIGKILL)
    assert status(instance, run_id) is DagsterRunStatus.FAILURE
    again = next_attempt_id(run_id)
    wait_for(lambda: instance.has_run(again), "the next attempt", 30)
    wait_for(lambda: "goes on in job mloc-" in logged(instance, again), "the adoption", 60)
    ledger = Ledger.of_instance(instance)
    wait_for(
        lambda: [one.worker for one in ledger.snapshot()[1] if one.run_id == f"{again}/nap"] == ["pool"], "it held"
    )
    assert status(instance, again) is DagsterRunStatus.SUCCESS
    assert [one for one in ledger.snapshot()[1] if one.run == again] == []
    assert "goes on in job mloc-" in logged(instance, again)
    assert len(cluster.created) == len(cluster.started) == 1 and slept(home, run_id)


def test_a_server_that_goes_away_costs_nothing(
    instance: DagsterInstance, home: Home, started: Callable[[float], str], cluster: Cluster
) -> None:
    run_id = started(8)
    cluster.down()
    time.sleep(float(os.environ.get("MLOC_TEST_AWAY_SECONDS") or 4))
    cluster.up()
    assert status(instance, run_id) is DagsterRunStatus.SUCCESS
    assert len(cluster.created) == len(cluster.started) == 1 and slept(home, run_id)


def test_what_is_evicted_is_done_again(
    instance: DagsterInstance, home: Home, started: Callable[[float], str], cluster: Cluster
) -> None:
    run_id = started(5)
    cluster.evict(cluster.started[0])
    assert status(instance, run_id) is DagsterRunStatus.SUCCESS
    told = logged(instance, run_id)
    assert "was taken away: EvictionByEvictionAPI: Eviction API: evicting" in told
    assert len(cluster.created) == len(cluster.started) == 2 and slept(home, run_id)


def test_a_server_that_is_away_for_longer_than_work_is_missed_finds_one_copy(
    instance: DagsterInstance, home: Home, started: Callable[[float], str], cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLOC_LOST_AFTER_SECONDS", "12")
    run_id = started(75)
    cluster.down()
    wait_for(lambda: "cannot be asked" in logged(instance, run_id), "the work to be missed", 120)
    cluster.up()
    wait_for(lambda: get(instance, run_id).is_finished, "the end", 180)
    told = logged(instance, run_id)
    assert get(instance, run_id).is_success, told
    assert len(cluster.created) == len(cluster.started) == 1 and slept(home, run_id), told


def test_a_control_plane_that_is_killed_finds_its_work_again(
    queue: DagsterInstance, queued_home: Home, declare: Callable, cluster: Cluster, tmp_path: Path
) -> None:
    declare()
    path = write(tmp_path / "nap.yaml", NAP, seconds=45)
    with daemon(queued_home):
        run_id = submit_file(queue, queued_home, compile_plan(load_file(path)))
        wait_for(lambda: naps(cluster), "the nap", 90)
        for process in processes_of(tmp_path):
            process.kill()
    again = next_attempt_id(run_id)
    with daemon(queued_home):
        wait_for(lambda: queue.has_run(again), "the next attempt", 90)
        wait_for(lambda: get(queue, again).is_finished, "its end", 120)
    assert get(queue, again).is_success, logged(queue, again)
    assert len(cluster.created) == len(cluster.started) == 1 and slept(queued_home, run_id)
