"""A real worker process that reaches the service only through a line that is cut now and then."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from dagster import DagsterInstance, DagsterRunStatus

from mloc_dagster.definitions.submit import submit_file
from mloc_dagster.placement.failures.faults import faults_of
from mloc_dagster.placement.ledger import Ledger
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_file
from mloc_dagster.store.home import Home
from tests.definitions.conftest import get, installed, status
from tests.placement.pull.conftest import Line, Machine, Place, declare
from tests.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ONE = "workers:\n  - {name: far, cpu: 2, memory: 2Gi, pull: {stop_seconds: 5}}\n"
_COUNT = '''
import time
from pydantic import BaseModel
from executors.base import Interrupted, Result

class CountExecutor:
    """counts aloud"""
    name, inline, uses, section = "count", False, frozenset({"plugin"}), None
    def run(self, ctx):
        given = ctx.spec.plugin
        with open(given["begun"], "a") as file:
            file.write("x")
        for number in range(given["to"]):
            print("count", number, flush=True)
            ctx.progress.update(number, given["to"], "numbers")
            time.sleep(0.1)
            if ctx.stop.is_set():
                raise Interrupted
        (ctx.out / "made.bin").write_bytes(bytes(5 << 20))
        return Result(payload={"counted": given["to"], "secret": given.get("secret")})
'''
TASK = """\
apiVersion: mloc/v1
metadata: {{name: {name}, owner: ann}}
spec:
  retry: {{max_retries: {retries}, backoff: 0.1}}
  stages:
    - name: first
      spec: {{taskType: count, plugin: {{to: {to}, begun: {begun}, secret: "${{FAR_SECRET}}"}}}}
    - name: second
      spec: {{taskType: count, plugin: {{to: 1, begun: {begun}.2, above: "${{first.result.counted}}"}}}}
"""


@pytest.fixture(autouse=True)
def counting(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAR_SECRET", "hunter2-and-more")
    with installed("count", _COUNT, tmp_path / "site", monkeypatch):
        yield


@pytest.fixture
def submitted(
    place: Place, instance: DagsterInstance, home: Home, machine: Callable[..., Machine], tmp_path: Path
) -> Callable[..., tuple[str, Machine]]:
    """A task whose first stage counts so far, on the machine `far`."""

    def do(to: int, retries: int = 2) -> tuple[str, Machine]:
        declare(home, ONE)
        place.start("web")
        far = machine("far")
        wait_for(lambda: "is connected to" in far.said, "the worker", 60)
        place.start("daemon")
        path = tmp_path / "task.yaml"
        path.write_text(TASK.format(name="task", to=to, begun=tmp_path / "begun", retries=retries))
        return submit_file(instance, home, compile_plan(load_file(path))), far

    return do


def log_of(home: Home) -> str:
    """What the stage that runs has said, as far as it has come."""
    return "".join(path.read_text("utf-8") for path in home.work.glob("*/logs/stdout.log"))


def counted(home: Home, run_id: str, stage: str = "first") -> list[int]:
    log = (home.run_folder(run_id, stage) / "logs" / "stdout.log").read_text("utf-8")
    assert "\x1e" not in log
    return [int(line.split()[1]) for line in log.splitlines() if line.startswith("count ")]


def result(home: Home, run_id: str, stage: str = "first") -> dict:
    return json.loads((home.run_folder(run_id, stage) / "responses.json").read_text("utf-8"))


def told(instance: DagsterInstance, run_id: str) -> str:
    return "\n".join(
        [*(fault.message for fault in faults_of(instance, get(instance, run_id))),
         *(entry.user_message for entry in instance.all_logs(run_id))]
    )  # fmt: skip


def ended_well(instance: DagsterInstance, run_id: str) -> None:
    wait_for(lambda: get(instance, run_id).is_finished, "the run's end", 180)
    assert get(instance, run_id).status is DagsterRunStatus.SUCCESS, told(instance, run_id)


def left_over(far: Machine) -> list[Path]:
    return list((far.folder / "kept" / "attempts").glob("*"))


def test_a_pipeline_and_nothing_secret_anywhere(
    submitted: Callable, instance: DagsterInstance, home: Home, tmp_path: Path
) -> None:
    run_id, far = submitted(5)
    ended_well(instance, run_id)
    assert counted(home, run_id) == [*range(5)]
    first, second = result(home, run_id), result(home, run_id, "second")
    assert (first["worker"], second["worker"], first["result"]["secret"]) == ("far", "far", "***")
    assert (home.run_folder(run_id, "first") / "made.bin").stat().st_size == 5 << 20
    wait_for(lambda: not left_over(far), "the folder to be empty", 20)
    seen = [path for root in (home.root, far.folder) for path in root.rglob("*") if path.is_file()]
    assert not [path for path in seen if b"hunter2" in path.read_bytes()]
    assert not list((home.root / "pull" / "attempts").iterdir())
    assert [one.worker.name for one in Ledger.of_instance(instance).snapshot()[0]] == ["far"]


def test_a_line_that_is_cut_loses_and_doubles_nothing(
    submitted: Callable, instance: DagsterInstance, home: Home, line: Line, tmp_path: Path
) -> None:
    run_id, far = submitted(100)
    wait_for(lambda: "count 20" in log_of(home), "the count", 90)
    line.cut()
    time.sleep(13)  # longer than what is left to count: it ends while nobody can hear of it
    assert "count 99" not in log_of(home)
    line.mend()
    ended_well(instance, run_id)
    assert counted(home, run_id) == [*range(100)]
    assert (tmp_path / "begun").read_text() == "x", "it was begun once"
    assert "connected again" in far.said


def test_the_worker_is_killed_and_takes_its_work_over(
    submitted: Callable, instance: DagsterInstance, home: Home, tmp_path: Path
) -> None:
    run_id, far = submitted(100)
    wait_for(lambda: "count 10" in log_of(home), "the count", 90)
    far.kill()
    time.sleep(3)
    far.start()
    ended_well(instance, run_id)
    assert counted(home, run_id) == [*range(100)] and (tmp_path / "begun").read_text() == "x"
    assert "goes on" in far.said


def test_the_service_is_killed(
    submitted: Callable, instance: DagsterInstance, home: Home, place: Place, tmp_path: Path
) -> None:
    run_id, _ = submitted(100)
    wait_for(lambda: "count 10" in log_of(home), "the count", 90)
    place.kill("web")
    time.sleep(3)
    place.start("web")
    ended_well(instance, run_id)
    assert counted(home, run_id) == [*range(100)] and (tmp_path / "begun").read_text() == "x"


def test_cancel_takes_less_than_ten_seconds(submitted: Callable, instance: DagsterInstance, home: Home) -> None:
    run_id, far = submitted(3000)
    wait_for(lambda: "count 10" in log_of(home), "the count", 90)
    [keeper] = [
        one for one in psutil.process_iter(["cmdline"]) if str(far.folder) in str(one.info["cmdline"])
        and "executors.remote.keeper" in str(one.info["cmdline"])
    ]  # fmt: skip
    family = [keeper, *keeper.children(recursive=True)]
    assert len(family) > 1
    begun = time.monotonic()
    instance.run_coordinator.cancel_run(run_id)
    assert status(instance, run_id) is DagsterRunStatus.CANCELED
    assert time.monotonic() - begun < 10
    wait_for(lambda: not any(one.is_running() for one in family), "the processes to end", 10)
    wait_for(lambda: not left_over(far), "the folder to be empty", 10)
