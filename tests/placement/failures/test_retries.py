"""Runs of a task that fails as it is told: attempts by cause, the cause on the run and on its step."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from dagster import DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus

from executors.cgroup import Cgroup
from mloc_dagster.definitions.execution import TASK_ID
from mloc_dagster.definitions.submit import create_run, store_spec
from mloc_dagster.definitions.worker import execute
from mloc_dagster.placement.failures.cause import ATTEMPTS, CAUSE, Cause
from mloc_dagster.placement.failures.faults import faults_of
from mloc_dagster.placement.failures.letters import DeadLetter, dead_letters
from mloc_dagster.placement.failures.silence import LOST_AFTER
from mloc_dagster.placement.launcher.workers import WORKER
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_file
from mloc_dagster.store.home import Home
from tests.definitions.conftest import get, status, write

FAIL = """\
apiVersion: mloc/v1
metadata: {{name: {name}, owner: ann}}
spec:
  taskType: fail
  plugin: {{how: {how}, times: {times}, count: {count}}}
  retry: {{max_retries: {retries}, backoff: 0.1}}
  {more}
"""
Carry = Callable[..., DagsterRun]


def control_groups() -> bool:
    """Whether this user can make them."""
    group = Cgroup.make()
    if group:
        group.end()
    return group is not None


@pytest.fixture
def carry(instance: DagsterInstance, home: Home, tmp_path: Path, fail: None) -> Carry:
    """Run such a task here; returns the run as it ended."""

    def do(
        how: str, times: int = 9, retries: int = 2, more: str = "", tags: dict[str, str] | None = None
    ) -> DagsterRun:
        values = {"how": how, "times": times, "retries": retries, "more": more, "count": tmp_path / "count"}
        plan = compile_plan(load_file(write(tmp_path / "task.yaml", FAIL, **values)))
        run = create_run(instance, plan, store_spec(home, plan.task), fresh=tags is not None, tags=tags)
        execute(instance, run.run_id)
        return get(instance, run.run_id)

    return do


@pytest.mark.parametrize(
    ("how", "cause", "attempts", "told"),
    [
        ("user", "user", 1, "there is no column x"),
        ("memory", "out_of_memory", 2, "gradient_checkpointing"),
        ("cuda", "out_of_memory", 2, "per_device_train_batch_size"),
        ("killed", "worker_lost", 3, "was killed by signal 9 (from outside)"),
        ("exhausted", "internal", 1, "shard 1 of 3 failed 4 times"),
        ("crash", "internal", 3, "the library fell over"),
    ],
)
def test_attempts_follow_the_cause(
    carry: Carry, instance: DagsterInstance, tmp_path: Path, how: str, cause: str, attempts: int, told: str
) -> None:
    run = carry(how)
    assert run.status is DagsterRunStatus.FAILURE
    assert (run.tags[CAUSE], run.tags[ATTEMPTS]) == (cause, str(attempts))
    assert len((tmp_path / "count").read_text().split()) == attempts
    [fault] = faults_of(instance, run)
    assert (fault.step, fault.cause, fault.attempts) == ("task/fail", cause, attempts) and told in fault.message
    [letter] = dead_letters(instance)
    assert letter == DeadLetter(
        run.run_id, "task", "ann", "fail", cause, fault.message.split("\n")[0].strip(), letter.failed_at, attempts
    )
    assert abs(letter.failed_at - time.time()) < 60
    assert dead_letters(instance, cause=Cause(cause)) == [letter]
    assert dead_letters(instance, cause=next(other for other in Cause if other != cause)) == []


def test_a_step_that_does_well_at_last_leaves_no_cause(carry: Carry, instance: DagsterInstance) -> None:
    run = carry("killed", times=1)
    assert run.status is DagsterRunStatus.SUCCESS and CAUSE not in run.tags
    assert len(instance.all_logs(run.run_id, of_type=DagsterEventType.STEP_UP_FOR_RETRY)) == 1
    assert dead_letters(instance) == []


def test_a_run_forgets_what_was_told_of_the_one_that_it_was_copied_from(
    instance: DagsterInstance, home: Home, tmp_path: Path, fail: None
) -> None:
    values = {"name": "t", "how": "user", "times": 1, "retries": 0, "more": "", "count": tmp_path / "count"}
    plan = compile_plan(load_file(write(tmp_path / "task.yaml", FAIL, **values)))
    copied = {WORKER: "1:0", CAUSE: "worker_lost", ATTEMPTS: "3"}
    run = create_run(instance, plan, store_spec(home, plan.task), fresh=False, tags=copied)
    instance.submit_run(run.run_id, None)  # pyright: ignore[reportArgumentType]
    assert status(instance, run.run_id) is DagsterRunStatus.FAILURE
    ended = get(instance, run.run_id)
    assert (ended.tags[CAUSE], ended.tags[ATTEMPTS]) == ("user", "1") and ended.tags[WORKER] != "1:0"


def test_a_tag_gives_a_run_no_other_tasks_folder(carry: Carry, home: Home) -> None:
    for given in ("../../elsewhere", "0bd6d2d2-0000-4000-8000-000000000000"):
        run = carry("user", times=0, tags={TASK_ID: given})
        assert run.status is DagsterRunStatus.SUCCESS
        assert (home.results / run.run_id).is_dir() and not (home.results / given).exists()


def test_a_time_limit_has_one_attempt(carry: Carry, instance: DagsterInstance) -> None:
    run = carry("slow", more="timeoutSeconds: 2")
    assert run.status is DagsterRunStatus.FAILURE and run.tags[CAUSE] == "timed_out"
    assert not instance.all_logs(run.run_id, of_type=DagsterEventType.STEP_UP_FOR_RETRY)


def test_stopped_work_gets_another_attempt(carry: Carry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOST_AFTER, "3")
    run = carry("stopped", times=1)
    assert run.status is DagsterRunStatus.SUCCESS
    assert len((tmp_path / "count").read_text().split()) == 2


@pytest.mark.skipif(not control_groups(), reason="this user cannot make control groups here")
def test_work_is_held_to_the_memory_that_it_asks_for(carry: Carry, instance: DagsterInstance, tmp_path: Path) -> None:
    run = carry("greedy", more="resources: {hardware: {memory: 1Gi}}")
    assert run.tags[CAUSE] == "out_of_memory" and run.tags[ATTEMPTS] == "2"
    [fault] = faults_of(instance, run)
    assert "was killed by the kernel: it needs more than resources.hardware.memory 1.0 GiB" in fault.message


def test_a_killed_process_of_the_kernels_is_out_of_memory(carry: Carry, monkeypatch: pytest.MonkeyPatch) -> None:
    from mloc_dagster.placement.failures import diagnosis

    counts = iter(range(100))  # one more at each look, as when the kernel killed something between two
    monkeypatch.setattr(diagnosis, "oom_kills", lambda: next(counts))
    assert carry("killed", retries=0).tags[CAUSE] == "out_of_memory"
