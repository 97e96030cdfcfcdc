"""Light runs that follow one another in one child of the pool, and what never shares one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from dagster import DagsterInstance, DagsterRunStatus

from mloc_dagster.definitions.submit import submit_file
from mloc_dagster.placement.failures.cause import CAUSE
from mloc_dagster.placement.launcher.workers import only_holder, still_has, tell_to_end, told_to_end, worker_of
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_file
from mloc_dagster.store.home import Home
from tests.definitions.conftest import NAP, get, status, write
from tests.definitions.test_launcher import gone, worker_pid
from tests.placement.launcher.conftest import pools
from tests.placement.launcher.test_launcher import cold_starts, run_look, submit_echo
from tests.waiting import wait_for


def following(instance: DagsterInstance, home: Home, folder: Path, count: int = 6) -> list[str]:
    """Light runs, each begun as soon as the one before has ended; at least two of them share a child."""
    for attempt in range(5):  # a machine that pauses for a second lets the child end
        runs = []
        for number in range(count):
            runs.append(submit_echo(instance, home, folder / f"t{attempt}_{number}.yaml"))
            assert status(instance, runs[-1]) is DagsterRunStatus.SUCCESS
        if len({worker_pid(instance, run_id) for run_id in runs}) < count:
            return runs
    raise AssertionError("no run followed another in its child")


def test_a_light_run_follows_another_in_its_child(instance: DagsterInstance, home: Home, tmp_path: Path) -> None:
    runs = following(instance, home, tmp_path)
    assert not any(cold_starts(instance, run_id) for run_id in runs)
    for run_id in runs:
        assert "begins" in (home.logs / f"{run_id}.log").read_text()
        assert not (home.logs / f"{run_id}.lock").exists()
    instance.run_launcher.join()
    wait_for(lambda: gone([worker_pid(instance, run_id) for run_id in runs]), "the children to end", 20)
    assert len(pools(home)) == 1


def test_another_environment_or_folder_is_another_child(
    instance: DagsterInstance, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {worker_pid(instance, run_id) for run_id in following(instance, home, tmp_path)}
    monkeypatch.setenv("ONLY_HERE", "now")
    run_id = submit_echo(instance, home, tmp_path / "other.yaml")
    assert status(instance, run_id) is DagsterRunStatus.SUCCESS and worker_pid(instance, run_id) not in before
    before.add(worker_pid(instance, run_id))
    monkeypatch.chdir(home.root)
    run_id = submit_echo(instance, home, tmp_path / "moved.yaml")
    assert status(instance, run_id) is DagsterRunStatus.SUCCESS and worker_pid(instance, run_id) not in before


def test_code_of_others_shares_no_process(instance: DagsterInstance, home: Home, tmp_path: Path, look: Path) -> None:
    seen = [run_look(instance, home, tmp_path / f"l{number}.yaml", f"n{number}") for number in range(4)]
    assert len({one["pid"] for one in seen}) == 4 and all(len(one["seen"]) == 1 for one in seen)


def test_a_worker_that_is_killed_in_a_later_run_is_told(
    instance: DagsterInstance, home: Home, tmp_path: Path, nap: None
) -> None:
    following(instance, home, tmp_path)
    run_id = submit_file(instance, home, compile_plan(load_file(write(tmp_path / "nap.yaml", NAP, seconds=120))))
    wait_for(lambda: get(instance, run_id).status is DagsterRunStatus.STARTED, "the nap to begin")
    os.kill(worker_pid(instance, run_id), signal.SIGKILL)
    assert status(instance, run_id) is DagsterRunStatus.FAILURE
    assert get(instance, run_id).tags[CAUSE] == "worker_lost"


def test_who_is_told_to_end_takes_no_other_run(home: Home) -> None:
    worker = psutil.Process()
    with only_holder(home, "one") as alone:
        assert alone and still_has(home, "one", worker)
        assert tell_to_end(home, "one", worker) and tell_to_end(home, "one", worker)
        assert not still_has(home, "another", worker)
    assert told_to_end("one") and not still_has(home, "one", worker)


def test_a_run_that_was_let_go_of_is_nobodys_to_end(instance: DagsterInstance, home: Home, tmp_path: Path) -> None:
    worker = psutil.Process()
    with only_holder(home, "two"):
        pass
    assert not tell_to_end(home, "two", worker) and not told_to_end("two")
    runs = following(instance, home, tmp_path)
    child = worker_of(get(instance, runs[-1]))
    assert child is None or not tell_to_end(home, runs[-1], child)
    assert not instance.run_launcher.terminate(runs[-1]), "it has ended"
    assert get(instance, runs[-1]).status is DagsterRunStatus.SUCCESS
