"""Whatever is killed, the work goes on or is ended, once: cancel, a killed worker of the run, a killed engine."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from dagster import DagsterInstance, DagsterRunStatus
from docker.errors import APIError

from mloc_dagster.definitions.replay import next_attempt_id
from mloc_dagster.definitions.submit import submit_file
from mloc_dagster.placement.ledger import Ledger
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_file
from mloc_dagster.store.home import Home
from tests.definitions.conftest import NAP, get, nap, status, write
from tests.definitions.test_launcher import worker_pid
from tests.docker_engine import Engine
from tests.waiting import wait_for

__all__ = ["nap"]
pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(600)]

Started = Callable[..., tuple[str, Any]]


@pytest.fixture
def started(
    instance: DagsterInstance, home: Home, tmp_path: Path, nap: None, declare: Callable, engines: tuple[Engine, Engine]
) -> Started:
    """Submit a nap of so many seconds; gives its run and its container, once it naps."""
    declare(keep_failed_seconds=0)

    def do(seconds: float) -> tuple[str, Any]:
        path = write(tmp_path / "nap.yaml", NAP, seconds=seconds)
        run_id = submit_file(instance, home, compile_plan(load_file(path)))
        wait_for(lambda: bool(naps(engines)) or get(instance, run_id).is_finished, "the nap", 60)
        assert not get(instance, run_id).is_finished, logged(instance, run_id)
        return run_id, naps(engines)[0]

    return do


def naps(engines: tuple[Engine, Engine]) -> list[Any]:
    """Containers in which the stage has begun: their stage has a child."""
    found = [one for engine in engines for one in engine.client().containers.list()]
    return [one for one in found if "time.sleep(300)" in str(processes(one))]


def processes(container: Any) -> list[list[str]]:
    """What runs in a container; nothing when it has just ended."""
    try:
        return container.top(ps_args="-eww -o pid,args")["Processes"]
    except APIError:
        return []


def containers(engines: tuple[Engine, Engine]) -> list[Any]:
    return [one for engine in engines for one in engine.client().containers.list(all=True)]


def logged(instance: DagsterInstance, run_id: str) -> str:
    return "\n".join(entry.user_message for entry in instance.all_logs(run_id))


def slept(home: Home, run_id: str) -> dict[str, Any]:
    return json.loads((home.run_folder(run_id, "nap") / "responses.json").read_text("utf-8"))


def test_cancel_takes_less_than_ten_seconds_and_leaves_no_container(
    instance: DagsterInstance, started: Started, engines: tuple[Engine, Engine]
) -> None:
    run_id, _ = started(300)
    begun = time.monotonic()
    instance.run_coordinator.cancel_run(run_id)
    assert status(instance, run_id) is DagsterRunStatus.CANCELED
    assert time.monotonic() - begun < 10
    assert containers(engines) == []
    assert Ledger.of_instance(instance).snapshot()[1] == []


def test_a_run_whose_worker_is_killed_goes_on_in_the_same_container(
    instance: DagsterInstance, home: Home, started: Started, engines: tuple[Engine, Engine]
) -> None:
    run_id, container = started(20)
    os.kill(worker_pid(instance, run_id), signal.SIGKILL)
    assert status(instance, run_id) is DagsterRunStatus.FAILURE
    again = next_attempt_id(run_id)
    wait_for(lambda: instance.has_run(again), "the next attempt", 30)
    wait_for(lambda: "goes on in container" in logged(instance, again), "the adoption", 60)
    assert [one.id for one in containers(engines)] == [container.id], "there is no second copy"
    assert status(instance, again) is DagsterRunStatus.SUCCESS
    result = slept(home, run_id)
    assert (result["result"], result["metadata"]["run_id"]) == ({"slept": True}, again)
    assert f"nap runs in {container.name}" not in logged(instance, again)
    assert containers(engines) == []


def test_what_was_finished_while_nobody_watched_is_not_done_again(
    instance: DagsterInstance, home: Home, started: Started, engines: tuple[Engine, Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run_id, container = started(8)
    before = worker_pid(instance, run_id)
    for path in home.root.glob("pool/*.sock"):
        path.unlink()
    os.killpg(os.getpgid(before), signal.SIGSTOP)  # neither the worker nor whoever would see its death
    try:
        wait_for(lambda: not naps(engines), "the nap's end", 60)
        container.wait()
        container.remove()
    finally:
        os.kill(before, signal.SIGKILL)
        os.killpg(os.getpgid(before), signal.SIGCONT)
    assert status(instance, run_id) is DagsterRunStatus.FAILURE
    again = next_attempt_id(run_id)
    wait_for(lambda: instance.has_run(again), "the next attempt", 30)
    assert status(instance, again) is DagsterRunStatus.SUCCESS
    assert "was finished while nobody watched" in logged(instance, again)
    assert slept(home, run_id)["result"] == {"slept": True} and containers(engines) == []


def test_a_killed_engine_comes_back_and_the_stage_is_done_again(
    instance: DagsterInstance, home: Home, started: Started, engines: tuple[Engine, Engine]
) -> None:
    run_id, container = started(12)
    hit = next(engine for engine in engines if container.id in [one.id for one in engine.client().containers.list()])
    hit.kill()
    time.sleep(3)  # for so long nobody can ask it
    hit.start()
    assert status(instance, run_id) is DagsterRunStatus.SUCCESS
    told = logged(instance, run_id)
    assert slept(home, run_id)["result"] == {"slept": True}
    lost = "was killed from outside" in told or "is gone" in told
    assert told.count("runs in container") == (2 if lost else 1), told
    assert containers(engines) == []


def test_a_container_that_is_killed_is_named_and_its_stage_done_again(
    instance: DagsterInstance, home: Home, started: Started, engines: tuple[Engine, Engine]
) -> None:
    run_id, container = started(6)
    container.kill()
    assert status(instance, run_id) is DagsterRunStatus.SUCCESS
    told = logged(instance, run_id)
    assert f"{container.name} on one was killed from outside (exit code 137)" in told
    assert told.count("runs in container") == 2 and get(instance, run_id).is_success


def test_an_engine_that_is_away_for_long_has_no_second_copy(
    instance: DagsterInstance, home: Home, started: Started, engines: tuple[Engine, Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLOC_LOST_AFTER_SECONDS", "12")
    monkeypatch.setenv("MLOC_SYNC_SECONDS", "2")
    run_id, container = started(90)
    container.reload()
    first = psutil.Process(container.attrs["State"]["Pid"])
    hit, other = engines if container.labels["mloc.worker"] == "one" else reversed(engines)
    with hit.stopped():
        wait_for(lambda: len(other.client().containers.list()) == 1, "the next attempt", 180)
        wait_for(lambda: not first.is_running() or first.status() == psutil.STATUS_ZOMBIE, "the old copy to end", 60)
        assert not get(instance, run_id).is_finished, "it has ended by itself, long before the work was done"
    wait_for(lambda: get(instance, run_id).is_finished, "the end", 300)
    told = logged(instance, run_id)
    assert get(instance, run_id).is_success, told
    assert told.count("nap runs in container") == 2 and slept(home, run_id)["worker"] != container.labels["mloc.worker"]
    assert len(list(home.results.glob("*/nap/responses.json"))) == 1
    wait_for(lambda: containers(engines) == [], "what was left to be cleared away", 30)
