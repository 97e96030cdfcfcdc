"""The watched folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, build_sensor_context
from dagster._core.definitions.sensor_definition import DefaultSensorStatus

from mloc_dagster.definitions import inbox
from mloc_dagster.definitions.inbox import inbox_sensor, take
from mloc_dagster.definitions.launcher import WORKER, LocalRunLauncher
from mloc_dagster.store.home import Home
from tests.definitions.conftest import status, write
from tests.waiting import wait_for


class Killed(BaseException):
    """Stands for a kill -9 at the place where it is raised."""


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Note launches instead of starting workers."""
    found: list[str] = []

    def launch(self: LocalRunLauncher, context) -> None:
        found.append(context.dagster_run.run_id)
        self._instance.add_run_tags(context.dagster_run.run_id, {WORKER: "1:1"})

    monkeypatch.setattr(LocalRunLauncher, "launch_run", launch)
    monkeypatch.setattr(
        LocalRunLauncher,
        "terminate",
        lambda self, run_id: self._instance.report_run_canceled(self._instance.get_run_by_id(run_id)),
    )
    monkeypatch.setattr(inbox, "_QUIET_SECONDS", 0.0)
    return found


def runs(instance: DagsterInstance) -> list[DagsterRun]:
    """All runs."""
    return list(instance.get_runs())


def test_a_dropped_file_runs_once(instance: DagsterInstance, home: Home) -> None:
    write(home.inbox / "task.yaml")
    assert list(take(instance, home)) == []
    wait_for(lambda: bool(list(take(instance, home))), "the file to be quiet for a second")
    (run,) = runs(instance)
    assert status(instance, run.run_id) is DagsterRunStatus.SUCCESS
    assert (home.inbox / "accepted" / "task.yaml").is_file() and not (home.inbox / "task.yaml").exists()
    assert (home.specs / f"{run.job_name}.yaml").is_file()
    assert list(take(instance, home)) == [] and len(runs(instance)) == 1


def test_the_sensor_is_on_and_tells_what_it_did(instance: DagsterInstance, home: Home, launched: list[str]) -> None:
    assert inbox_sensor.default_status is DefaultSensorStatus.RUNNING
    write(home.inbox / "task.yaml")
    ticked = inbox_sensor.evaluate_tick(build_sensor_context(instance, sensor_name="inbox"))
    assert launched and ticked.skip_message == f"accepted task.yaml: run {launched[0]}"
    assert "nothing new" in (inbox_sensor.evaluate_tick(build_sensor_context(instance)).skip_message or "")


def test_a_bad_file_is_put_aside_with_its_faults(instance: DagsterInstance, home: Home, launched: list[str]) -> None:
    write(home.inbox / "bad.yaml", "apiVersion: mloc/v1\nspec: {{taskType: ecko, nonsense: 1}}\n")
    write(home.inbox / "good.yaml")
    list(take(instance, home))
    report = (home.inbox / "rejected" / "bad.yaml.errors.txt").read_text()
    assert report.startswith("bad.yaml:2:") and "ecko" in report and str(home.root) not in report
    assert (home.inbox / "rejected" / "bad.yaml").is_file() and len(launched) == 1


def test_what_is_not_a_finished_task_file_is_left_alone(
    instance: DagsterInstance, home: Home, launched: list[str]
) -> None:
    for name in (".half.yaml", "notes.txt", "task.yaml.part"):
        write(home.inbox / name)
    assert list(take(instance, home)) == [] and not launched


def test_the_same_name_dropped_again_runs_again(instance: DagsterInstance, home: Home, launched: list[str]) -> None:
    for _ in range(2):
        write(home.inbox / "task.yaml")
        list(take(instance, home))
    assert len(launched) == 2 and len(list((home.inbox / "accepted").iterdir())) == 2


def test_one_that_cannot_be_started_now_does_not_stop_the_others(
    instance: DagsterInstance, home: Home, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(home.inbox / "a.yaml")
    write(home.inbox / "b.yaml")
    real = inbox.create_run

    def failing(instance, plan, job_name, **options):
        if plan.task.name == "a":
            raise OSError("disk full")
        return real(instance, plan, job_name, **options)

    monkeypatch.setattr(inbox, "create_run", failing)
    told = list(take(instance, home))
    assert told[0] == "not yet a.yaml: OSError: disk full" and told[1].startswith("accepted b.yaml")
    monkeypatch.setattr(inbox, "create_run", real)
    assert [line.split(":")[0] for line in take(instance, home)] == ["accepted a.yaml"] and len(launched) == 2


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "place",
    [
        (Path, "rename", 1),
        (Path, "rename", 2),
        (inbox, "store_spec", 1),
        (inbox, "create_run", 1),
        (DagsterInstance, "launch_run", 1),
        (LocalRunLauncher, "launch_run", 1),
    ],
    ids=["claim", "accept", "store", "create", "launch", "start"],
)
def test_a_crash_at_any_place_neither_loses_nor_doubles_a_run(
    instance: DagsterInstance,
    home: Home,
    launched: list[str],
    monkeypatch: pytest.MonkeyPatch,
    place: tuple[object, str, int],
    after: bool,
) -> None:
    owner, name, wanted = place
    real, calls = getattr(owner, name), 0

    def crashing(*arguments, **options):
        nonlocal calls
        ours = name != "rename" or home.inbox in Path(arguments[1]).parents
        calls += ours
        if calls == wanted and ours and not after:
            raise Killed
        result = real(*arguments, **options)
        if calls == wanted and ours and after:
            raise Killed
        return result

    write(home.inbox / "task.yaml")
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, crashing)
        patched.setattr(
            DagsterInstance, "report_run_failed", lambda *arguments, **options: None
        )  # the dead report nothing
        with pytest.raises(Killed):
            list(take(instance, home))
    list(take(instance, home))
    list(take(instance, home))
    assert len(launched) == 1 and len(runs(instance)) == 1
    assert [path.name for path in (home.inbox / "accepted").iterdir()] == ["task.yaml"]
    assert not list((home.inbox / ".claimed").iterdir())


def test_a_file_that_kept_an_old_time_is_still_waited_for(instance: DagsterInstance, home: Home) -> None:
    path = write(home.inbox / "task.yaml")
    os.utime(path, (0, time.time() - 3600))
    assert list(take(instance, home)) == [] and path.exists()
