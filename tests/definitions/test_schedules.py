"""Task files that run by themselves, with the real daemon."""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.scheduler.instigation import InstigatorStatus, ScheduleInstigatorData, TickStatus

from mloc_dagster.definitions.added import Added, AddedFiles, NotAdded
from mloc_dagster.definitions.repository import TaskFiles
from mloc_dagster.definitions.schedules import (
    BY,
    forget_states,
    last_tick,
    next_tick,
    schedules_of,
    sensors_of,
    set_states,
    states_of,
)
from mloc_dagster.definitions.submit import submit_file
from mloc_dagster.definitions.triggers import CannotLook, Look, look
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_file
from mloc_dagster.spec.schedule import Triggers
from mloc_dagster.store.home import Home
from tests.definitions.conftest import status, write
from tests.definitions.test_daemon import daemon
from tests.waiting import wait_for

ECHO = """\
apiVersion: mloc/v1
metadata: {{name: {name}, owner: ann, project: demo}}
spec:
  taskType: echo
  echo: {{text: "{said}"}}
{more}"""
TIME = ".dagster/scheduled_execution_time"


def add(instance: DagsterInstance, home: Home, name: str, more: str, on: bool = True) -> Added:
    path = write(home.root.parent / f"{name}.yaml", ECHO, name=name, said="hello", more=more)
    task = load_file(path)
    added = AddedFiles(home).add(task)
    set_states(instance, added, task, InstigatorStatus.RUNNING if on else InstigatorStatus.STOPPED)
    return added


def runs(instance: DagsterInstance, task: str) -> list[DagsterRun]:
    return [run for run in instance.get_runs() if run.tags.get("mloc/task") == task]


def looking(instance: DagsterInstance, added: Added) -> bool:
    """Whether the sensor looks at this moment."""
    from mloc_dagster.definitions.schedules import _origin

    origin = _origin(added, added.sensor_name)
    ticks = instance.get_ticks(origin.get_id(), origin.get_selector().get_id(), limit=1)
    return bool(ticks) and ticks[0].status is TickStatus.STARTED


def behind(instance: DagsterInstance, added: Added, seconds: float) -> None:
    """As if nobody had looked after a schedule for a while."""
    from mloc_dagster.definitions.schedules import _origin, _state

    state = _state(instance, _origin(added, added.schedule_name))
    assert state is not None and isinstance(state.instigator_data, ScheduleInstigatorData)
    data = ScheduleInstigatorData(state.instigator_data.cron_schedule, time.time() - seconds)
    instance.update_instigator_state(state.with_data(data))


@pytest.mark.slow
def test_the_latest_missed_time_is_made_up_for_once_whatever_restarts(instance: DagsterInstance, home: Home) -> None:
    added = add(instance, home, "by-the-clock", "  schedule: {cron: '* * * * *', fresh: true}\n")
    behind(instance, added, 185)
    with daemon(home):
        wait_for(lambda: len(runs(instance, "by-the-clock")) >= 1, "the run that was missed", 120)
        run = runs(instance, "by-the-clock")[-1]
        assert status(instance, run.run_id) is DagsterRunStatus.SUCCESS
    assert run.tags["mloc/owner"] == "ann" and run.tags[BY] == "by_the_clock__schedule"
    assert run.tags["mloc/fresh"] == "true" and run.job_name == added.job
    first = len(runs(instance, "by-the-clock"))
    assert first <= 2, "all that were missed"
    with daemon(home):
        wait_for(lambda: len(runs(instance, "by-the-clock")) > first, "the next time", 150)
    times = Counter(run.tags[TIME] for run in runs(instance, "by-the-clock"))
    assert set(times.values()) == {1}, times


@pytest.mark.slow
def test_what_is_added_paused_replaced_and_removed_while_the_daemon_runs(
    instance: DagsterInstance, home: Home, tmp_path: Path
) -> None:
    inbox = tmp_path / "incoming"
    inbox.mkdir()
    trigger = f"  triggers: {{inbox: {inbox}, every_seconds: 1}}\n"
    with daemon(home):
        added = add(instance, home, "watcher", trigger)
        wait_for(lambda: last_tick(instance, added, "triggers") is not None, "a first look")
        (inbox / "one.csv").write_text("1")
        wait_for(lambda: len(runs(instance, "watcher")) == 1, "the run of the first file")
        assert runs(instance, "watcher")[0].tags[BY] == "one.csv"
        task = added.load()
        set_states(instance, added, task, InstigatorStatus.STOPPED)
        wait_for(lambda: not looking(instance, added), "the look that goes on to end")
        assert states_of(instance, added, task) == {"triggers": "STOPPED"}
        (inbox / "two.csv").write_text("2")
        time.sleep(4)
        assert len(runs(instance, "watcher")) == 1
        set_states(instance, added, task, InstigatorStatus.RUNNING)
        wait_for(lambda: len(runs(instance, "watcher")) == 2, "the run of the second file")
    with daemon(home):
        seen = (last_tick(instance, added, "triggers") or {"at": 0.0})["at"]
        wait_for(lambda: (last_tick(instance, added, "triggers") or {"at": 0.0})["at"] > seen, "a look after it")
        assert len(runs(instance, "watcher")) == 2, "a restart ran it again"
        AddedFiles(home).remove("watcher")
        forget_states(instance, added)
        time.sleep(4)
        (inbox / "three.csv").write_text("3")
        time.sleep(4)
        assert len(runs(instance, "watcher")) == 2
    assert [status(instance, run.run_id) for run in runs(instance, "watcher")] == [DagsterRunStatus.SUCCESS] * 2


@pytest.mark.slow
def test_objects_and_results_of_others_start_a_task(instance: DagsterInstance, home: Home, s3: Any) -> None:
    more = "  triggers: {s3_prefix: s3://models/in/, asset_updated: [other/echo], every_seconds: 1}\n"
    added = add(instance, home, "follower", more)
    s3.put_object(Bucket="models", Key="elsewhere/x", Body=b"0")
    with daemon(home):
        wait_for(lambda: last_tick(instance, added, "triggers") is not None, "a first look")
        s3.put_object(Bucket="models", Key="in/a.csv", Body=b"1")
        wait_for(lambda: len(runs(instance, "follower")) == 1, "the run of the object")
        assert runs(instance, "follower")[0].tags[BY] == "s3://models/in/a.csv"
        path = write(home.root.parent / "other.yaml", ECHO, name="other", said="a result", more="")
        submit_file(instance, home, compile_plan(load_file(path)))
        wait_for(lambda: len(runs(instance, "follower")) == 2, "the run of the result")
        assert runs(instance, "follower")[0].tags[BY] == "other/echo"
        again = submit_file(instance, home, compile_plan(load_file(path)))  # reused: nothing new
        status(instance, again)
        time.sleep(4)
        assert len(runs(instance, "follower")) == 2
    for run in runs(instance, "follower"):
        assert status(instance, run.run_id) is DagsterRunStatus.SUCCESS


def test_a_look_takes_what_is_new_and_what_has_changed(instance: DagsterInstance, tmp_path: Path) -> None:
    triggers = Triggers(inbox=str(tmp_path / "in"))
    first = look(instance, triggers, "t", 0, Look())
    assert first.came == ()
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("b", "a", ".half"):
        (folder / name).write_text(name)
    assert look(instance, triggers, "t", 0, first.after).came == ()  # still being written, for all one knows
    wait_for(lambda: bool(look(instance, triggers, "t", 0, first.after).came), "them to be quiet")
    both = look(instance, triggers, "t", 0, first.after)
    assert both.came == ("a", "b") and both.key == look(instance, triggers, "t", 0, first.after).key
    kept = Look.read(both.after.written())
    assert look(instance, triggers, "t", 0, kept).came == ()
    (folder / "a").write_text("longer")
    wait_for(lambda: look(instance, triggers, "t", 0, kept).came == ("a",), "the change")
    (folder / "b").unlink()
    assert look(instance, triggers, "t", 0, kept).came == ("a",)


def test_a_place_that_cannot_be_read_is_told_and_nothing_is_forgotten(
    instance: DagsterInstance, tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CannotLook, match="no-such-bucket"):
        look(instance, Triggers(s3_prefix="s3://no-such-bucket/in"), "t", 0, Look())
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotLook, match="cannot be read: Not a directory"):
        look(instance, Triggers(inbox=str(tmp_path / "file")), "t", 0, Look())
    monkeypatch.setattr("mloc_dagster.definitions.triggers.MOST", 1)
    for key in "ab":
        s3.put_object(Bucket="models", Key=f"in/{key}", Body=b"1")
    with pytest.raises(CannotLook, match="holds 2 entries, more than the 1"):
        look(instance, Triggers(s3_prefix="s3://models/in"), "t", 0, Look())


def test_the_zone_decides_on_the_time(home: Home) -> None:
    home.root.mkdir()
    path = write(
        home.root / "z.yaml", ECHO, name="z", said="", more="  schedule: {cron: 30 2 * * *, timezone: Asia/Kolkata}\n"
    )
    task = load_file(path)
    AddedFiles(home).add(task)
    (schedule,) = schedules_of(home)
    assert schedule.execution_timezone == "Asia/Kolkata"
    moment = next_tick(task)
    assert moment is not None and time.strftime("%H:%M", time.gmtime(moment)) == "21:00"


def test_what_is_added_stays_what_it_was(home: Home, tmp_path: Path) -> None:
    path = write(tmp_path / "kept.yaml", ECHO, name="kept", said="one", more="  schedule: 0 3 * * *\n")
    added = AddedFiles(home).add(load_file(path))
    path.unlink()
    for copy in home.specs.glob("*.yaml"):
        copy.unlink()
    repository = TaskFiles(None, home)
    assert [schedule.name for schedule in repository.get_all_schedules()] == ["kept__schedule"]
    assert repository.has_job(added.job) and repository.get_schedule("kept__schedule").job_name == added.job
    other = write(tmp_path / "other.yaml", ECHO, name="ke-pt", said="one", more="  schedule: 0 3 * * *\n")
    AddedFiles(home).add(load_file(other))
    clash = write(tmp_path / "clash.yaml", ECHO, name="ke.pt", said="one", more="  schedule: 0 3 * * *\n")
    with pytest.raises(NotAdded, match="same name in Dagster"):
        AddedFiles(home).add(load_file(clash))
    (home.schedules / "broken.json").write_text("{")
    assert [one.task for one in AddedFiles(home)] == ["ke-pt", "kept"]


def test_the_file_of_the_page_can_be_added(home: Home, tmp_path: Path) -> None:
    page = (Path(__file__).absolute().parents[2] / "docs" / "schedules.md").read_text("utf-8")
    (written,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "nightly.yaml").write_text(written)
    AddedFiles(home).add(load_file(tmp_path / "nightly.yaml"))
    assert [one.name for one in schedules_of(home)] == ["nightly__schedule"]
    assert [one.minimum_interval_seconds for one in sensors_of(home)] == [30]
