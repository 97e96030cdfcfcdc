"""The daemon on a real home: runs wait in order with their reasons, hold hardware while they run, and give it back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from dagster import DagsterInstance, DagsterRunStatus

from mloc_dagster.definitions.instance import DAGSTER_YAML, open_instance
from mloc_dagster.definitions.submit import submit_file
from mloc_dagster.placement.ledger import Ledger
from mloc_dagster.placement.queue.signals import daemon_is_there
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_file
from mloc_dagster.store.home import Home
from tests.definitions.conftest import get, status, write
from tests.waiting import wait_for

WORKERS = """\
workers:
  - {name: gpu-a, cpu: 4, memory: 8Gi, gpus: [{type: a100-80gb, indexes: [4, 5]}]}
  - {name: cpu-b, cpu: 1, memory: 4Gi}
"""
NAP = """\
apiVersion: mloc/v1
metadata: {{name: {name}, owner: {owner}}}
spec:
  taskType: nap
  plugin: {{seconds: {seconds}}}
  resources: {{hardware: {{cpu: 1, gpu: {{type: a100-80gb, count: {gpus}}}}}}}
"""


@pytest.fixture
def queued_home(home: Home, nap: None, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home whose runs wait in the queue, with two GPUs that are only declared."""
    settings = yaml.safe_load(DAGSTER_YAML)
    settings["run_coordinator"] = {
        "module": "mloc_dagster.placement.queue.coordinator",
        "class": "QueueCoordinator",
        "config": {"without_daemon": "wait", "lease_seconds": 6.0},
    }
    settings["run_launcher"]["config"]["terminate_grace_seconds"] = 2
    home.dagster.mkdir(parents=True)
    (home.dagster / "dagster.yaml").write_text(yaml.safe_dump(settings))
    (home.root / "workers.yaml").write_text(WORKERS)
    monkeypatch.setenv("MLOC_POOL_IDLE", "5")
    return home


@pytest.fixture
def queue(queued_home: Home) -> Iterator[DagsterInstance]:
    """Its instance; runs that a test leaves are ended."""
    with open_instance(queued_home) as instance:
        yield instance
        for run in instance.get_runs():
            if not run.is_finished:
                instance.run_coordinator.cancel_run(run.run_id)
                status(instance, run.run_id)


@contextmanager
def daemon(home: Home) -> Iterator[subprocess.Popen[bytes]]:
    """Run the daemon while the block goes on."""
    log = home.root / "daemon.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mloc_dagster.definitions.daemon"],
            stdout=output,
            stderr=output,
            cwd=home.root.parent,
        )
    try:
        wait_for(lambda: daemon_is_there(home.dagster) or process.poll() is not None, "the daemon")
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()


Submit = Callable[..., str]


@pytest.fixture
def submit(queue: DagsterInstance, queued_home: Home, tmp_path: Path) -> Submit:
    """Submit a nap; returns its run."""

    def do(name: str, owner: str = "ann", gpus: int = 2, seconds: float = 0.2, priority: int = 0, **tags: str) -> str:
        path = write(tmp_path / f"{name}.yaml", NAP, owner=owner, seconds=seconds, gpus=gpus)
        given = {"dagster/priority": str(priority), **tags}
        return submit_file(queue, queued_home, compile_plan(load_file(path)), tags=given)

    return do


def begun(instance: DagsterInstance, run_id: str) -> float:
    record = instance.get_run_record_by_id(run_id)
    assert record is not None and record.start_time is not None
    return record.start_time


def waiting(instance: DagsterInstance, run_id: str) -> str:
    return get(instance, run_id).tags.get("mloc/waiting", "")


def test_runs_begin_in_order_and_tell_why_they_wait(queue: DagsterInstance, queued_home: Home, submit: Submit) -> None:
    first = submit("first", seconds=8)
    with daemon(queued_home):
        wait_for(lambda: get(queue, first).status is DagsterRunStatus.STARTED, "the first run")
        low, other = submit("low", "ann"), submit("other", "bob")
        high, never = submit("high", "ann", priority=3), submit("never", gpus=3)
        reason = "needs 2 × a100-80gb GPU: 0 free on gpu-a"
        wait_for(lambda: all(waiting(queue, run) == reason for run in (low, other, high)), "the reasons")
        nowhere = "needs 3 × a100-80gb GPU, which no worker has"
        wait_for(lambda: waiting(queue, never) == nowhere, "the reason of what can never run")
        view = Ledger.of_instance(queue).saved("queue")
        assert [row["run_id"] for row in view["first"]] == [high, other, low, never]
        assert view["reasons"] == {reason: 3, nowhere: 1} and view["first"][1]["owner"] == "bob"
        done = [first, high, other, low]
        assert [status(queue, run) for run in done] == [DagsterRunStatus.SUCCESS] * 4
        assert sorted(done, key=lambda run: begun(queue, run)) == done
        assert waiting(queue, high).startswith("over after ")
        assert get(queue, never).status is DagsterRunStatus.QUEUED
        grant = json.loads(get(queue, high).tags["mloc/lease"])
        assert grant["worker"] == "gpu-a" and [device["index"] for device in grant["devices"]] == [4, 5]
        [result] = queued_home.results.glob(f"{high}/*/responses.json")
        assert json.loads(result.read_text())["metadata"]["devices"] == ["4", "5"]
        assert queue.run_coordinator.cancel_run(never)
        wait_for(lambda: Ledger.of_instance(queue).saved("queue")["waiting"] == 0, "the queue to be empty")
    assert Ledger.of_instance(queue).snapshot()[1] == []


def test_work_without_gpus_goes_to_a_worker_without_and_begins_at_once(
    queue: DagsterInstance, queued_home: Home, submit: Submit
) -> None:
    ledger = Ledger.of_instance(queue)
    with daemon(queued_home):
        wait_for(lambda: len(ledger.snapshot()[0]) == 2, "the workers")
        cpu, second = submit("one", gpus=0, seconds=2), submit("two", gpus=0, seconds=2)
        wait_for(lambda: len(ledger.snapshot()[1]) == 2, "the leases", 20)
        leases = {lease.run_id: lease for lease in ledger.snapshot()[1]}
        held = {run_id: (lease.worker, dict(lease.devices)) for run_id, lease in leases.items()}
        assert held == {cpu: ("cpu-b", {}), second: ("gpu-a", {})}
        assert status(queue, cpu) is status(queue, second) is DagsterRunStatus.SUCCESS
        run = queue.get_run_record_by_id(cpu)
        assert run is not None and leases[cpu].taken_at - run.create_timestamp.timestamp() < 10


def test_hardware_of_a_killed_run_is_given_to_the_next(
    queue: DagsterInstance, queued_home: Home, submit: Submit
) -> None:
    with daemon(queued_home):
        killed = submit("killed", seconds=300)
        wait_for(lambda: get(queue, killed).status is DagsterRunStatus.STARTED, "the run")
        next_ = submit("next")
        wait_for(lambda: waiting(queue, next_) != "", "the reason")
        os.kill(int(get(queue, killed).tags["mloc/worker"].partition(":")[0]), signal.SIGKILL)
        assert status(queue, killed) is DagsterRunStatus.FAILURE
        assert status(queue, next_) is DagsterRunStatus.SUCCESS


def test_a_run_whose_lease_is_taken_away_ends(queue: DagsterInstance, queued_home: Home, submit: Submit) -> None:
    ledger = Ledger.of_instance(queue)
    with daemon(queued_home):
        run = submit("fenced", seconds=300)
        wait_for(lambda: get(queue, run).status is DagsterRunStatus.STARTED, "the run")
        wait_for(lambda: bool(list(queued_home.work.glob("*/pids"))), "the work")
        [lease] = ledger.snapshot()[1]
        assert ledger.release(lease.token)
        assert status(queue, run) in (DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)
        told = [entry.dagster_event.message or "" for entry in queue.all_logs(run) if entry.dagster_event]
        assert any("others may have it" in text for text in told), "\n".join(told)


def test_a_daemon_that_was_killed_leaves_runs_alone_and_the_next_goes_on(
    queue: DagsterInstance, queued_home: Home, submit: Submit
) -> None:
    with daemon(queued_home) as first:
        run = submit("long", seconds=6)
        wait_for(lambda: get(queue, run).status is DagsterRunStatus.STARTED, "the run")
        first.kill()
        first.wait()
    next_ = submit("next")
    with daemon(queued_home):
        assert status(queue, run) is status(queue, next_) is DagsterRunStatus.SUCCESS
        assert begun(queue, next_) > begun(queue, run) + 5


def test_there_is_one_daemon_a_home_and_it_reads_its_settings_first(queue: DagsterInstance, queued_home: Home) -> None:
    def refused() -> str:
        command = [sys.executable, "-m", "mloc_dagster.definitions.daemon"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        return done.stderr

    with daemon(queued_home):
        assert "there is a daemon for" in refused()
    (queued_home.root / "workers.yaml").write_text("workers:\n- {name: a, cpu: 0, memory: 1Gi}")
    assert "workers.yaml:2:18 workers[0].cpu: is nothing" in refused()


def test_without_a_daemon_a_run_waits_or_begins_as_the_settings_say(
    queued_home: Home, queue: DagsterInstance, submit: Submit, tmp_path: Path
) -> None:
    run = submit("waits", gpus=0)
    assert get(queue, run).status is DagsterRunStatus.QUEUED
    settings = queued_home.dagster / "dagster.yaml"
    settings.write_text(settings.read_text().replace("without_daemon: wait", "without_daemon: launch"))
    plan = compile_plan(load_file(write(tmp_path / "begins.yaml", NAP, owner="ann", seconds=0.1, gpus=0)))
    with open_instance(queued_home) as instance:
        assert status(instance, submit_file(instance, queued_home, plan)) is DagsterRunStatus.SUCCESS
