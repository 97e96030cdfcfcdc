"""Runs whose own worker dies get another attempt, which goes on from what the one before had finished."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import DagsterEvent, DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.storage.tags import RETRY_NUMBER_TAG

from mloc_dagster.definitions.execution import REPLAY_OF
from mloc_dagster.definitions.instance import DAGSTER_YAML, open_instance
from mloc_dagster.definitions.lost import Watch, end_if_lost
from mloc_dagster.definitions.replay import next_attempt_id, retry_lost
from mloc_dagster.definitions.submit import create_run, store_spec, submit_file
from mloc_dagster.placement.failures.cause import CAUSE
from mloc_dagster.placement.failures.letters import dead_letters
from mloc_dagster.placement.launcher.workers import WORKER, worker_tag
from mloc_dagster.placement.queue.asked import NOT_BEFORE
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_file
from mloc_dagster.store.home import Home
from mloc_dagster.store.results import read_envelope
from tests.definitions.conftest import get, status, write
from tests.definitions.test_daemon import Submit, daemon, queue, queued_home, submit
from tests.definitions.test_launcher import gone, worker_pid
from tests.waiting import wait_for

__all__ = ["queue", "queued_home", "submit"]

ONE = """\
apiVersion: mloc/v1
metadata: {{name: {name}, owner: ann}}
spec: {{taskType: echo, echo: 1, retry: {{max_retries: 1}}}}
"""
TWO = """\
apiVersion: mloc/v1
metadata: {{name: {name}, owner: ann}}
spec:
  taskType: echo
  stages:
    - {{name: first, spec: {{echo: 1}}}}
    - {{name: second, dependsOn: [first], spec: {{taskType: nap, plugin: {{seconds: 1.5}}}}}}
    - {{name: third, dependsOn: [second], spec: {{echo: '${{COLOUR}}'}}}}
"""


@pytest.fixture
def waiting(home: Home) -> Iterator[DagsterInstance]:
    """The home's instance; runs that are submitted wait for a daemon that there is not."""
    home.dagster.mkdir(parents=True)
    (home.dagster / "dagster.yaml").write_text(DAGSTER_YAML.replace("without_daemon: launch", "without_daemon: wait"))
    with open_instance(home) as found:
        yield found


def lose(instance: DagsterInstance, run: DagsterRun) -> DagsterRun:
    """Have a run go on in a process that is dead already."""
    process = subprocess.Popen(["sleep", "60"])
    tag = worker_tag(process.pid)
    process.kill()
    process.wait()
    instance.add_run_tags(run.run_id, {WORKER: tag})
    instance.report_dagster_event(DagsterEvent(DagsterEventType.RUN_START.value, run.job_name), run.run_id)
    return get(instance, run.run_id)


@pytest.fixture
def lost(waiting: DagsterInstance, home: Home, tmp_path: Path) -> DagsterRun:
    """A run that nobody has ended yet; it may have one more attempt."""
    plan = compile_plan(load_file(write(tmp_path / "one.yaml", ONE)))
    tags = {"dagster/priority": "3", "colour": "blue"}
    return lose(waiting, create_run(waiting, plan, store_spec(home, plan.task), fresh=True, tags=tags))


def test_a_lost_run_has_one_next_attempt_whoever_notices(waiting: DagsterInstance, lost: DagsterRun) -> None:
    assert retry_lost(waiting, lost.run_id) is None, "it has not ended yet"
    assert end_if_lost(waiting, lost)
    ended = get(waiting, lost.run_id)
    assert ended.status is DagsterRunStatus.FAILURE and ended.tags[CAUSE] == "worker_lost"
    assert {retry_lost(waiting, lost.run_id) for _ in range(3)} == {next_attempt_id(lost.run_id)}
    run = get(waiting, next_attempt_id(lost.run_id))
    assert run.status is DagsterRunStatus.QUEUED and waiting.get_runs_count() == 2
    assert run.parent_run_id == run.root_run_id == run.tags[REPLAY_OF] == lost.run_id
    assert (run.tags["mloc/task_id"], run.tags[RETRY_NUMBER_TAG]) == (lost.run_id, "1")
    assert (run.tags["dagster/priority"], run.tags["colour"]) == ("3", "blue")
    assert not {CAUSE, WORKER} & run.tags.keys()
    assert 0 < float(run.tags[NOT_BEFORE]) - time.time() <= 5, "the backoff of the file, which names none"
    assert dead_letters(waiting) == []


def test_the_last_attempt_that_is_lost_is_a_dead_letter(waiting: DagsterInstance, lost: DagsterRun) -> None:
    Watch(waiting, None).settle_all()
    last = lose(waiting, get(waiting, next_attempt_id(lost.run_id)))
    Watch(waiting, None).settle_all()
    assert get(waiting, last.run_id).status is DagsterRunStatus.FAILURE and waiting.get_runs_count() == 2
    [letter] = dead_letters(waiting)
    assert (letter.run_id, letter.stage, letter.cause, letter.attempts) == (last.run_id, "run", "worker_lost", 2)


def test_a_cancelled_run_that_loses_its_worker_is_not_tried_again(waiting: DagsterInstance, lost: DagsterRun) -> None:
    waiting.report_run_canceling(lost)
    Watch(waiting, None).settle_all()
    assert get(waiting, lost.run_id).status is DagsterRunStatus.CANCELED and waiting.get_runs_count() == 1


def test_without_its_task_file_a_lost_run_says_why_there_is_no_next_attempt(
    waiting: DagsterInstance, home: Home, lost: DagsterRun
) -> None:
    next(home.specs.glob("one__*.yaml")).unlink()
    Watch(waiting, None).settle_all()
    told = [entry.message for entry in waiting.all_logs(lost.run_id)]
    assert any("there is no further attempt: the task file" in text and "not there any more" in text for text in told)


def naps(home: Home) -> list[int]:
    """Processes of naps that have begun, and of their children."""
    return [int(pid) for path in home.work.glob("*/pids") for pid in path.read_text().split()]


def test_the_pool_sees_the_death_of_its_worker_and_starts_another_that_goes_on_from_what_is_there(
    instance: DagsterInstance, home: Home, tmp_path: Path, nap: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_POOL_IDLE", "30")
    monkeypatch.setenv("COLOUR", "blue")  # the pool has not got it, and the next attempt must have it
    run_id = submit_file(instance, home, compile_plan(load_file(write(tmp_path / "two.yaml", TWO))), fresh=True)
    wait_for(lambda: len(naps(home)) == 2, "the nap")
    os.kill(worker_pid(instance, run_id), signal.SIGKILL)
    assert status(instance, run_id) is DagsterRunStatus.FAILURE
    again = next_attempt_id(run_id)
    wait_for(lambda: instance.has_run(again), "the next attempt", 20)
    assert status(instance, again) is DagsterRunStatus.SUCCESS
    folders = (home.run_folder(run_id, stage) / "responses.json" for stage in ("first", "second", "third"))
    first, _, third = map(read_envelope, folders)
    assert (first.metadata["run_id"], third.metadata["run_id"]) == (run_id, again), "done again, or not at all"


def test_a_daemon_adopts_what_runs_and_tries_again_what_was_lost_while_there_was_none(
    queue: DagsterInstance, queued_home: Home, submit: Submit
) -> None:
    with daemon(queued_home) as first:
        lives = submit("lives", gpus=0, seconds=14)
        wait_for(lambda: len(naps(queued_home)) == 2, "the first")
        dies = submit("dies", gpus=0, seconds=3)
        wait_for(lambda: len(naps(queued_home)) == 4, "both")
        first.kill()
        first.wait()
        before = worker_pid(queue, lives)
        for path in queued_home.root.glob("pool/*.sock"):
            path.unlink()  # as after the death of `mloc up` and all of its: nobody else sees what follows
        os.kill(worker_pid(queue, dies), signal.SIGKILL)
    with daemon(queued_home):
        assert status(queue, dies) is DagsterRunStatus.FAILURE
        again = next_attempt_id(dies)
        wait_for(lambda: queue.has_run(again), "the next attempt")
        assert status(queue, again) is status(queue, lives) is DagsterRunStatus.SUCCESS
    assert get(queue, dies).tags[CAUSE] == "worker_lost" and worker_pid(queue, lives) == before
    assert queue.get_runs_count() == 3


def test_a_worker_that_is_stopped_is_lost_and_its_run_tried_again(
    queue: DagsterInstance, queued_home: Home, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_LOST_AFTER_SECONDS", "3")
    settings = queued_home.dagster / "dagster.yaml"
    settings.write_text(settings.read_text().replace("lease_seconds: 6.0", "lease_seconds: 2.0"))
    with daemon(queued_home):
        run = submit("frozen", gpus=0, seconds=2)
        wait_for(lambda: len(naps(queued_home)) == 2, "the nap")
        pids = naps(queued_home)
        frozen = worker_pid(queue, run)
        os.kill(frozen, signal.SIGSTOP)
        assert status(queue, run) is DagsterRunStatus.FAILURE
        wait_for(lambda: gone([frozen, *pids]), "all of its processes to end")
        assert get(queue, run).tags[CAUSE] == "worker_lost"
        wait_for(lambda: queue.has_run(next_attempt_id(run)), "the next attempt")
        assert status(queue, next_attempt_id(run)) is DagsterRunStatus.SUCCESS
