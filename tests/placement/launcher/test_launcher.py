"""Runs that are forked from a warm pool: isolated, watched, cancelled, killed; and cold ones when there is no pool."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus
from dagster._core.launcher import WorkerStatus

from mloc_dagster.definitions.instance import open_instance
from mloc_dagster.definitions.submit import create_run, store_spec, submit_file
from mloc_dagster.placement.launcher import LocalRunLauncher, client, workers
from mloc_dagster.placement.launcher.fingerprint import pool_name
from mloc_dagster.plan import compile_plan
from mloc_dagster.processes.sockets import short_name
from mloc_dagster.spec import load_file
from mloc_dagster.spec.base import Json
from mloc_dagster.store.home import Home
from tests.definitions.conftest import NAP, get, status, write
from tests.definitions.test_launcher import gone, napping, worker_pid
from tests.placement.launcher.conftest import LOOK, pools
from tests.waiting import wait_for

_HANG_UP = """
import socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
for _ in range(2):
    listener.accept()[0].close()
"""


def run_look(instance: DagsterInstance, home: Home, path: Path, says: str) -> dict[str, Json]:
    """Run a task that looks around; returns what it saw."""
    run_id = submit_file(instance, home, compile_plan(load_file(write(path, LOOK, says=says))))
    assert status(instance, run_id) is DagsterRunStatus.SUCCESS
    (result,) = home.results.glob(f"{run_id}/*/responses.json")
    return json.loads(result.read_text())["result"]


def cold_starts(instance: DagsterInstance, run_id: str) -> list[str]:
    """The warnings of a run that it was started without a pool."""
    return [entry.message for entry in instance.all_logs(run_id) if "cold start" in entry.message]


def submit_echo(instance: DagsterInstance, home: Home, path: Path) -> str:
    """Start a task of two light stages."""
    return submit_file(instance, home, compile_plan(load_file(write(path))))


def test_runs_are_forked_from_one_pool(instance: DagsterInstance, home: Home, tmp_path: Path) -> None:
    first, second = (submit_echo(instance, home, tmp_path / f"{name}.yaml") for name in ("one", "two"))
    (pool,) = pools(home)
    assert {status(instance, run_id) for run_id in (first, second)} == {DagsterRunStatus.SUCCESS}
    assert not cold_starts(instance, first) and not cold_starts(instance, second)
    assert pools(home) == [pool]


def test_a_run_leaves_nothing_to_the_next_one(
    instance: DagsterInstance, home: Home, tmp_path: Path, look: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONLY_HERE", "first")
    first = run_look(instance, home, tmp_path / "one.yaml", "a")
    monkeypatch.delenv("ONLY_HERE")
    monkeypatch.chdir(home.root)
    second = run_look(instance, home, tmp_path / "two.yaml", "b")
    assert (first["seen"], second["seen"]) == (["a"], ["b"])
    assert (first["only_here"], second["only_here"]) == ("first", None)
    assert second["folder"] == str(home.root) != first["folder"]
    assert first["pid"] == first["session"] != second["session"]


def test_what_a_step_prints_is_kept_by_step_and_in_the_runs_log(
    instance: DagsterInstance, home: Home, tmp_path: Path, look: Path
) -> None:
    run_id = submit_file(instance, home, compile_plan(load_file(write(tmp_path / "t.yaml", LOOK, says="hello"))))
    assert status(instance, run_id) is DagsterRunStatus.SUCCESS
    (captured,) = instance.all_logs(run_id, of_type=DagsterEventType.LOGS_CAPTURED)
    assert captured.dagster_event
    data = captured.dagster_event.logs_captured_data
    key = instance.compute_log_manager.build_log_key_for_run(run_id, data.file_key)
    logs = instance.compute_log_manager.get_log_data(key)
    assert logs.stdout and b"said hello" in logs.stdout and logs.stderr and b"warned" in logs.stderr
    assert instance.compute_log_manager.is_capture_complete(key)
    wait_for(lambda: "said hello" in (home.logs / f"{run_id}.log").read_text(), "the run's own log")


def test_secrets_of_the_submitter_reach_the_run_and_not_the_disk(
    instance: DagsterInstance, home: Home, tmp_path: Path, look: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "s3cr3t-5d1f0c"
    monkeypatch.setenv("MY_TOKEN", secret)
    seen = run_look(instance, home, tmp_path / "t.yaml", "<${MY_TOKEN}>")
    assert seen["text"] != "<${MY_TOKEN}>" and str(seen["text"]).startswith("<")
    assert [path for path in home.root.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()] == []
    (pool,) = pools(home)
    assert secret not in Path(f"/proc/{pool.pid}/environ").read_text()


def test_code_that_changed_is_run_as_it_is_now(
    instance: DagsterInstance, home: Home, tmp_path: Path, look: Path
) -> None:
    assert run_look(instance, home, tmp_path / "one.yaml", "a")["version"] == 1
    (pool,) = pools(home)
    look.write_text(look.read_text().replace("VERSION = 1", "VERSION = 22"))
    assert run_look(instance, home, tmp_path / "two.yaml", "b")["version"] == 22
    wait_for(lambda: not psutil.pid_exists(pool.pid) or pool.status() == psutil.STATUS_ZOMBIE, "the old pool to end")
    assert len(pools(home)) == 1


def test_another_environment_for_imports_is_another_pool(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = home.dagster / "dagster.yaml"
    environment = {"PYTHONPATH": "/a", "SECRET": "x", "PGPASSWORD": "y"}
    name = pool_name(settings, environment)
    assert name == pool_name(settings, {**environment, "SECRET": "z", "PGPASSWORD": "other", "OMP_NUM_THREADS": "3"})
    assert name != pool_name(settings, {**environment, "PYTHONPATH": "/b"})


def test_a_password_that_changed_makes_a_new_pool(
    instance: DagsterInstance, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "one")
    assert status(instance, submit_echo(instance, home, tmp_path / "a.yaml")) is DagsterRunStatus.SUCCESS
    (before,) = pools(home)
    monkeypatch.setenv("PGPASSWORD", "two")
    run_id = submit_echo(instance, home, tmp_path / "b.yaml")
    assert status(instance, run_id) is DagsterRunStatus.SUCCESS and not cold_starts(instance, run_id)
    assert before.pid not in {pool.pid for pool in pools(home)}


def test_without_a_pool_a_run_starts_cold_and_says_why(
    instance: DagsterInstance, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "POOL_MODULE", "mloc_dagster.no_such_module")
    run_id = submit_echo(instance, home, tmp_path / "t.yaml")
    assert status(instance, run_id) is DagsterRunStatus.SUCCESS
    (warning,) = cold_starts(instance, run_id)
    assert "the pool ended at once; see " in warning and "pool.log" in warning


def test_a_pool_that_refuses_or_hangs_up_is_no_fault_of_the_run(
    instance: DagsterInstance, home: Home, tmp_path: Path
) -> None:
    launcher = instance.run_launcher
    assert isinstance(launcher, LocalRunLauncher)
    name = pool_name(launcher._settings, {**os.environ, **launcher._places()})
    (home.root / "pool").mkdir()
    address = home.root / "pool" / f"{name}.sock"
    with socket.socket(socket.AF_UNIX) as refusing:
        with short_name(address) as short:
            refusing.bind(short)
        # nobody listens: as after a pool was killed; another one takes its place
        first = submit_echo(instance, home, tmp_path / "a.yaml")
    assert status(instance, first) is DagsterRunStatus.SUCCESS and not cold_starts(instance, first)
    client.stop(home)
    wait_for(lambda: not address.exists(), "the pool to stop listening")
    with socket.socket(socket.AF_UNIX) as deaf:
        with short_name(address) as short:
            deaf.bind(short)
        deaf.listen()
        closer = subprocess.Popen([sys.executable, "-c", _HANG_UP, str(deaf.fileno())], pass_fds=(deaf.fileno(),))
        second = submit_echo(instance, home, tmp_path / "b.yaml")
        closer.wait(30)
    assert status(instance, second) is DagsterRunStatus.SUCCESS
    assert "the pool gave no answer" in cold_starts(instance, second)[0]


def test_a_pool_that_was_killed_leaves_its_runs_alone_and_is_replaced(
    instance: DagsterInstance, home: Home, tmp_path: Path, nap: None
) -> None:
    long = submit_file(instance, home, compile_plan(load_file(write(tmp_path / "nap.yaml", NAP, seconds=4))))
    napping(home)
    (pool,) = pools(home)
    pool.kill()
    after = submit_echo(instance, home, tmp_path / "t.yaml")
    assert status(instance, after) is DagsterRunStatus.SUCCESS and not cold_starts(instance, after)
    assert status(instance, long) is DagsterRunStatus.SUCCESS


def test_a_worker_that_was_killed_is_told_by_the_pool(
    instance: DagsterInstance, home: Home, tmp_path: Path, nap: None
) -> None:
    run_id = submit_file(instance, home, compile_plan(load_file(write(tmp_path / "nap.yaml", NAP, seconds=120))))
    pids = napping(home)
    wait_for(lambda: get(instance, run_id).status is DagsterRunStatus.STARTED, "the run to start")
    worker = worker_pid(instance, run_id)
    os.kill(worker, signal.SIGKILL)
    assert status(instance, run_id) is DagsterRunStatus.FAILURE  # nobody but the pool looks after it here
    (failure,) = instance.all_logs(run_id, of_type=DagsterEventType.RUN_FAILURE)
    assert f"the worker process {worker} is gone: signal 9 (killed, or out of memory)" in failure.message
    assert instance.run_launcher.check_run_worker_health(get(instance, run_id)).status is WorkerStatus.FAILED
    wait_for(lambda: gone(pids), "the work to end with its worker")


def test_cancelling_ends_all_processes(instance: DagsterInstance, home: Home, tmp_path: Path, nap: None) -> None:
    run_id = submit_file(instance, home, compile_plan(load_file(write(tmp_path / "nap.yaml", NAP, seconds=120))))
    pids = [*napping(home), worker_pid(instance, run_id)]
    assert instance.run_launcher.terminate(run_id)
    assert status(instance, run_id) is DagsterRunStatus.CANCELED
    wait_for(lambda: gone(pids), "all processes to end")
    assert len(pools(home)) == 1


def test_two_homes_have_pools_of_their_own(
    instance: DagsterInstance, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Home(tmp_path / "other")
    first = submit_echo(instance, home, tmp_path / "a.yaml")
    monkeypatch.setenv("MLOC_HOME", str(other.root))
    monkeypatch.setenv("DAGSTER_HOME", str(other.dagster))
    with open_instance(other) as second:
        run_id = submit_echo(second, other, tmp_path / "b.yaml")
        assert status(second, run_id) is DagsterRunStatus.SUCCESS
        assert second.get_run_by_id(first) is None
    assert status(instance, first) is DagsterRunStatus.SUCCESS and instance.get_run_by_id(run_id) is None
    assert len(pools(home)) == len(pools(other)) == 1
    assert (other.results / run_id).is_dir() and not (home.results / run_id).exists()


def test_many_launchers_at_once_start_one_pool(home: Home, instance: DagsterInstance, tmp_path: Path) -> None:
    write(tmp_path / "t.yaml")
    script = (
        "import sys\nfrom mloc_dagster.cli.home import open_home\n"
        "from mloc_dagster.definitions.submit import submit_file\n"
        "from mloc_dagster.plan import compile_plan\nfrom mloc_dagster.spec import load_file\n"
        "instance, home = open_home()\nprint(submit_file(instance, home, compile_plan(load_file(sys.argv[1]))))"
    )
    starting = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "t.yaml")], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    ids = [process.communicate(timeout=120)[0].strip() for process in starting]
    assert [status(instance, run_id) for run_id in ids] == [DagsterRunStatus.SUCCESS] * 3
    assert len(pools(home)) == 1 and not any(cold_starts(instance, run_id) for run_id in ids)


def test_the_pool_ends_when_idle_and_when_its_home_goes_away(
    instance: DagsterInstance, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_POOL_IDLE", "1")
    launcher = instance.run_launcher
    assert isinstance(launcher, LocalRunLauncher)
    launcher.warm_up()
    assert len(pools(home)) == 1
    wait_for(lambda: not pools(home), "the idle pool to end", 20)
    monkeypatch.setenv("MLOC_POOL_IDLE", "600")
    launcher.warm_up()
    (home.root / "pool").rename(tmp_path / "elsewhere")
    wait_for(lambda: not pools(home), "the pool without a home to end", 20)


def test_join_waits_for_the_workers(instance: DagsterInstance, home: Home, tmp_path: Path) -> None:
    run_id = submit_echo(instance, home, tmp_path / "t.yaml")
    instance.run_launcher.join(60)
    run = get(instance, run_id)
    worker = workers.worker_of(run)
    assert run.is_finished and not (worker and workers.still_has(home, run_id, worker))


def test_warm_can_be_switched_off(home: Home, tmp_path: Path) -> None:
    with open_instance(home):
        pass
    settings = home.dagster / "dagster.yaml"
    settings.write_text(settings.read_text().replace("warm: true", "warm: false"))
    with open_instance(home) as instance:
        run_id = submit_echo(instance, home, tmp_path / "t.yaml")
        assert status(instance, run_id) is DagsterRunStatus.SUCCESS
        assert not cold_starts(instance, run_id) and not pools(home)


_STOCK_QUEUE = "run_coordinator:\n  module: dagster._core.run_coordinator\n  class: QueuedRunCoordinator\n"


def test_the_stock_queue_works_with_it(home: Home, instance: DagsterInstance, tmp_path: Path) -> None:
    """Dagster's queued coordinator, and its daemon, hand runs to the launcher."""
    settings = home.dagster / "dagster.yaml"
    ours, found = re.subn(r"run_coordinator:\n(  .*\n)+", _STOCK_QUEUE, settings.read_text())
    assert found == 1
    settings.write_text(ours)
    log = (home.root / "daemon.log").open("wb")
    (tmp_path / "workspace.yaml").write_text("load_from:\n  - python_module: {module_name: mloc_dagster.definitions, "
                                             "location_name: mloc}\n")  # fmt: skip
    with DagsterInstance.get() as queued:
        plan = compile_plan(load_file(write(tmp_path / "t.yaml")))
        run = create_run(queued, plan, store_spec(home, plan.task), fresh=False, tags=None)
        queued.submit_run(run.run_id, None)  # pyright: ignore[reportArgumentType]
        assert get(queued, run.run_id).status is DagsterRunStatus.QUEUED
        command = [sys.executable, "-m", "dagster._daemon", "run", "-w", str(tmp_path / "workspace.yaml")]
        daemon = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=tmp_path)
        try:
            wait_for(lambda: get(queued, run.run_id).is_finished, "the queue to start the run", 120)
        finally:
            daemon.send_signal(signal.SIGINT)
            daemon.wait(30)
        assert get(queued, run.run_id).status is DagsterRunStatus.SUCCESS
        assert not cold_starts(queued, run.run_id)
