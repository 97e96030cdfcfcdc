"""Children that are forked ahead: runs go to them, and nothing is lost when they are not there."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
from dagster import DagsterInstance, DagsterRunStatus

from mloc_dagster.placement.launcher import client
from mloc_dagster.store.home import Home
from tests.definitions.conftest import status
from tests.definitions.test_launcher import gone, worker_pid
from tests.placement.launcher.conftest import pools
from tests.placement.launcher.test_launcher import cold_starts, run_look, submit_echo
from tests.waiting import wait_for

MOST = 2


def waiting(home: Home) -> list[psutil.Process]:
    """The spares of the pool, once it has all of them and they are at rest."""
    (pool,) = pools(home)
    wait_for(lambda: len(pool.children()) == MOST and at_rest(pool), "children that are forked ahead", 60)
    return pool.children()


def at_rest(pool: psutil.Process) -> bool:
    """Whether the children of a pool use no processor."""
    used = [spare.cpu_times() for spare in pool.children()]
    time.sleep(1.0)
    return [spare.cpu_times() for spare in pool.children()] == used


def test_a_run_is_carried_out_by_a_child_that_was_forked_ahead(
    instance: DagsterInstance, home: Home, tmp_path: Path, look: Path
) -> None:
    seen = run_look(instance, home, tmp_path / "t0.yaml", "first")
    for number in range(1, 6):  # on a busy machine they may seem to rest
        pids = {spare.pid for spare in waiting(home)}
        seen = run_look(instance, home, tmp_path / f"t{number}.yaml", f"says{number}")
        if seen["pid"] in pids:
            break
    else:
        raise AssertionError("no run went to a spare")
    assert seen["seen"] == [f"says{number}"] and seen["session"] == seen["pid"]
    assert len(waiting(home)) == MOST
    assert not list((home.root / "pool").glob(".rehearsal-*"))


def test_killed_spares_are_replaced_and_no_run_is_lost(instance: DagsterInstance, home: Home, tmp_path: Path) -> None:
    assert status(instance, submit_echo(instance, home, tmp_path / "one.yaml")) is DagsterRunStatus.SUCCESS
    killed = waiting(home)
    for spare in killed:
        os.kill(spare.pid, signal.SIGKILL)
    run_id = submit_echo(instance, home, tmp_path / "two.yaml")
    assert status(instance, run_id) is DagsterRunStatus.SUCCESS and not cold_starts(instance, run_id)
    assert worker_pid(instance, run_id) not in {spare.pid for spare in killed}
    assert not {spare.pid for spare in waiting(home)} & {spare.pid for spare in killed}


def test_spares_end_with_their_pool(instance: DagsterInstance, home: Home, tmp_path: Path) -> None:
    assert status(instance, submit_echo(instance, home, tmp_path / "one.yaml")) is DagsterRunStatus.SUCCESS
    (pool,), spares = pools(home), waiting(home)
    client.stop(home)
    wait_for(lambda: gone([pool.pid, *(spare.pid for spare in spares)]), "the pool and its spares to end", 30)
    assert status(instance, submit_echo(instance, home, tmp_path / "two.yaml")) is DagsterRunStatus.SUCCESS
    (pool,), spares = pools(home), waiting(home)
    os.kill(pool.pid, signal.SIGKILL)
    wait_for(lambda: gone([spare.pid for spare in spares]), "the spares of a killed pool to end", 30)
