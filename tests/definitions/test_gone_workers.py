"""What a kill at the worst moment leaves of a run: it comes to one end, and never to two."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest
from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus
from dagster._core.events import DagsterEvent

from mloc_dagster.definitions import worker
from mloc_dagster.definitions.lost import end_if_lost, report_gone
from mloc_dagster.definitions.replay import retry_lost
from mloc_dagster.definitions.submit import create_run, store_spec
from mloc_dagster.placement.launcher.launcher import CANCEL
from mloc_dagster.placement.launcher.workers import LAUNCHER, WORKER, end_now, launcher_tag, only_holder, worker_tag
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_file
from mloc_dagster.store.home import Home
from tests.definitions.conftest import get, status, write

ENDS = {DagsterEventType.RUN_SUCCESS, DagsterEventType.RUN_FAILURE, DagsterEventType.RUN_CANCELED}


def starting(instance: DagsterInstance, home: Home, **tags: str) -> str:
    """A run that has been taken out of the queue, and whose worker has not begun."""
    plan = compile_plan(load_file(write(home.root.parent / "task.yaml")))
    run = create_run(instance, plan, store_spec(home, plan.task), fresh=False, tags=tags)
    say(instance, run.run_id, DagsterEventType.RUN_STARTING)
    return run.run_id


def say(instance: DagsterInstance, run_id: str, kind: DagsterEventType) -> None:
    event = DagsterEvent(event_type_value=kind.value, job_name=get(instance, run_id).job_name)
    instance.report_dagster_event(event, run_id=run_id)


def ends(instance: DagsterInstance, run_id: str) -> list[DagsterEventType]:
    return [entry.get_dagster_event().event_type for entry in instance.all_logs(run_id, of_type=ENDS)]


def tag_of_a_dead_process() -> str:
    process = subprocess.Popen(["sleep", "60"])
    tag = worker_tag(process.pid)
    process.kill()
    process.wait()
    return tag


def test_a_run_whose_launcher_was_killed_ends_at_once(instance: DagsterInstance, home: Home) -> None:
    run_id = starting(instance, home)
    instance.add_run_tags(run_id, {LAUNCHER: launcher_tag(run_id)})
    assert not end_if_lost(instance, get(instance, run_id)), "its launcher lives"
    instance.add_run_tags(run_id, {LAUNCHER: f"{tag_of_a_dead_process()}:another-run"})
    assert not end_if_lost(instance, get(instance, run_id)), "the tag came from the run that this one repeats"
    instance.add_run_tags(run_id, {LAUNCHER: f"{tag_of_a_dead_process()}:{run_id}"})
    assert end_if_lost(instance, get(instance, run_id))
    [failure] = instance.all_logs(run_id, of_type=DagsterEventType.RUN_FAILURE)
    assert "the process that was starting its worker was killed" in failure.message
    assert worker.execute(instance, run_id).code == 0 and ends(instance, run_id) == [DagsterEventType.RUN_FAILURE]


def test_a_run_that_a_worker_holds_is_not_lost(instance: DagsterInstance, home: Home) -> None:
    run_id = starting(instance, home)
    script = f"import fcntl, sys, time; file = open({str(home.logs / f'{run_id}.lock')!r}, 'a')\n"
    script += "fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"
    home.logs.mkdir(parents=True, exist_ok=True)
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert not report_gone(instance, run_id, "it seems so")
        assert get(instance, run_id).status is DagsterRunStatus.STARTING
    finally:
        holder.kill()
        holder.communicate()
    assert report_gone(instance, run_id, "it is")
    assert get(instance, run_id).status is DagsterRunStatus.FAILURE


def test_a_run_on_another_machine_is_let_be_and_its_daemon_is_asked_to_end_it(
    instance: DagsterInstance, home: Home
) -> None:
    ticks, system, _ = worker_tag(os.getpid()).split("@")
    there = f"{ticks}@{system[:-1]}x@elsewhere"
    run_id = starting(instance, home, **{WORKER: there})
    say(instance, run_id, DagsterEventType.RUN_START)
    assert not end_if_lost(instance, get(instance, run_id))
    assert instance.run_launcher.terminate(run_id)
    run = get(instance, run_id)
    assert run.status is DagsterRunStatus.CANCELING and run.tags[CANCEL] == "asked"
    after_a_boot = f"{ticks}@{system[:-1]}x@{socket.gethostname()}"
    instance.add_run_tags(run_id, {WORKER: after_a_boot})
    assert end_if_lost(instance, get(instance, run_id))
    assert get(instance, run_id).status is DagsterRunStatus.CANCELED


def test_what_is_stopped_and_holds_a_run_is_killed_with_it(instance: DagsterInstance, home: Home) -> None:
    run_id = starting(instance, home, **{WORKER: tag_of_a_dead_process()})
    script = f"import fcntl, sys, time; file = open({str(home.logs / f'{run_id}.lock')!r}, 'a')\n"
    script += "fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"
    home.logs.mkdir(parents=True, exist_ok=True)
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with (home.logs / f"{run_id}.lock").open("a"):  # as one that waits for the run has it
        holder.send_signal(signal.SIGSTOP)
        assert not end_if_lost(instance, get(instance, run_id))
        end_now(home, run_id, None)
    assert holder.wait(10) == -signal.SIGKILL
    holder.communicate()
    assert end_if_lost(instance, get(instance, run_id))


def test_a_worker_does_not_begin_while_its_run_is_being_ended(instance: DagsterInstance, home: Home) -> None:
    run_id = starting(instance, home)
    with only_holder(home, run_id) as alone:
        assert alone
        assert worker.execute(instance, run_id).code == 0
    assert get(instance, run_id).status is DagsterRunStatus.STARTING


def test_a_worker_killed_after_it_said_how_its_run_ended_has_said_it(
    instance: DagsterInstance, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = starting(instance, home, **{WORKER: tag_of_a_dead_process()})
    say(instance, run_id, DagsterEventType.RUN_START)
    with monkeypatch.context() as killed:  # between the event log and the run storage
        killed.setattr(type(instance.run_storage), "handle_run_event", lambda *_: None)
        say(instance, run_id, DagsterEventType.RUN_SUCCESS)
    assert get(instance, run_id).status is DagsterRunStatus.STARTED
    assert end_if_lost(instance, get(instance, run_id))
    assert get(instance, run_id).status is DagsterRunStatus.SUCCESS
    assert ends(instance, run_id) == [DagsterEventType.RUN_SUCCESS]
    record = instance.get_run_record_by_id(run_id)
    assert record is not None and record.end_time is not None


def test_the_next_attempt_that_was_made_but_not_submitted_is_submitted_by_the_next_who_looks(
    instance: DagsterInstance, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = starting(instance, home, **{WORKER: tag_of_a_dead_process()})
    assert end_if_lost(instance, get(instance, run_id))
    with monkeypatch.context() as killed:  # between the run's creation and its submission
        killed.setattr(DagsterInstance, "submit_run", lambda *_: None)
        next_id = retry_lost(instance, run_id)
    assert next_id is not None and get(instance, next_id).status is DagsterRunStatus.NOT_STARTED
    assert retry_lost(instance, run_id) == next_id
    assert status(instance, next_id) is DagsterRunStatus.SUCCESS
    assert retry_lost(instance, run_id) == next_id and len(instance.get_runs()) == 2
