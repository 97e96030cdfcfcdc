"""Runs in worker processes of their own: submitted, watched, cancelled, killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
from dagster import AssetKey, DagsterEventType, DagsterInstance, DagsterRunStatus
from dagster._core.launcher import WorkerStatus

from mloc_dagster.definitions.launcher import WORKER, LocalRunLauncher
from mloc_dagster.definitions.submit import create_run, submit, submit_file
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_file
from mloc_dagster.store.home import Home
from tests.definitions.conftest import NAP, get, status, write
from tests.waiting import wait_for


def napping(home: Home) -> list[int]:
    """Wait for the nap to begin; returns the processes of its executor and of that one's child."""
    wait_for(lambda: any(path.read_text() for path in home.work.glob("*/pids")), "the nap to begin")
    return [int(pid) for path in home.work.glob("*/pids") for pid in path.read_text().split()]


def gone(pids: list[int]) -> bool:
    """Whether none of the processes lives."""
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


def worker_pid(instance: DagsterInstance, run_id: str) -> int:
    """The process of a run's worker."""
    return int(get(instance, run_id).tags[WORKER].partition(":")[0])


def test_a_submitted_task_runs_to_its_results(instance: DagsterInstance, home: Home, tmp_path: Path) -> None:
    plan = compile_plan(load_file(write(tmp_path / "task.yaml")))
    run_id = submit_file(instance, home, plan)
    assert status(instance, run_id) is DagsterRunStatus.SUCCESS
    run = get(instance, run_id)
    assert {key: run.tags[f"mloc/{key}"] for key in ("task_id", "task", "owner", "project")} == {
        "task_id": run_id, "task": "task", "owner": "alice", "project": "demo",
    }  # fmt: skip
    assert run.tags["mloc/spec_digest"] == plan.task.digest[:16]
    for stage in ("first", "second"):
        assert (home.results / run_id / stage / "responses.json").is_file()
        event = instance.get_latest_materialization_event(AssetKey(["task", stage]))
        assert event is not None and event.run_id == run_id
    assert instance.get_job_snapshot(run.job_snapshot_id or "").name == run.job_name
    assert run.remote_job_origin is not None and run.remote_job_origin.job_name == run.job_name


def test_the_worker_does_not_need_the_process_that_submitted(
    home: Home, instance: DagsterInstance, tmp_path: Path
) -> None:
    path = write(tmp_path / "task.yaml")
    script = (
        "import sys; from mloc_dagster.definitions.instance import open_instance\n"
        "from mloc_dagster.definitions.submit import submit_file; from mloc_dagster.plan import compile_plan\n"
        "from mloc_dagster.spec import load_file; from mloc_dagster.store.home import Home\n"
        "home = Home.current()\n"
        "print(submit_file(open_instance(home), home, compile_plan(load_file(sys.argv[1]))), flush=True)\n"
        "import os, signal; os.killpg(0, signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, cwd=tmp_path, start_new_session=True
    )
    assert done.returncode == -signal.SIGKILL
    assert status(instance, done.stdout.strip()) is DagsterRunStatus.SUCCESS


def test_cancelling_ends_all_processes_and_the_run(
    instance: DagsterInstance, home: Home, tmp_path: Path, nap: None
) -> None:
    plan = compile_plan(load_file(write(tmp_path / "nap.yaml", NAP, seconds=120)))
    run_id = submit_file(instance, home, plan)
    pids = [*napping(home), worker_pid(instance, run_id)]
    assert instance.run_coordinator.cancel_run(run_id)
    assert status(instance, run_id) is DagsterRunStatus.CANCELED
    wait_for(lambda: gone(pids), "all processes to end")


def test_a_worker_that_does_not_end_is_killed_with_its_work(
    instance: DagsterInstance, home: Home, tmp_path: Path, nap: None
) -> None:
    plan = compile_plan(load_file(write(tmp_path / "nap.yaml", NAP, seconds=120)))
    run_id = submit_file(instance, home, plan)
    pids = [*napping(home), worker_pid(instance, run_id)]
    launcher = LocalRunLauncher(terminate_grace_seconds=1)
    launcher.register_instance(instance)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    assert launcher.terminate(run_id)
    assert status(instance, run_id) is DagsterRunStatus.CANCELED
    wait_for(lambda: gone(pids), "all processes to end")


def test_a_killed_worker_is_noticed_and_leaves_no_process(
    instance: DagsterInstance, home: Home, tmp_path: Path, nap: None
) -> None:
    run_id = submit_file(instance, home, compile_plan(load_file(write(tmp_path / "nap.yaml", NAP, seconds=120))))
    pids = napping(home)
    wait_for(lambda: get(instance, run_id).status is DagsterRunStatus.STARTED, "the run to start")
    launcher = instance.run_launcher
    assert launcher.check_run_worker_health(get(instance, run_id)).status is WorkerStatus.RUNNING
    os.kill(worker_pid(instance, run_id), signal.SIGKILL)
    wait_for(lambda: launcher.check_run_worker_health(get(instance, run_id)).status is WorkerStatus.FAILED, "notice")
    wait_for(lambda: gone(pids), "the work to end with its worker")
    instance.report_run_failed(get(instance, run_id), "as the monitoring daemon does")


def test_another_process_with_the_workers_number_is_not_the_worker(
    instance: DagsterInstance, home: Home, tmp_path: Path
) -> None:
    plan = compile_plan(load_file(write(tmp_path / "task.yaml")))
    run = create_run(instance, plan, "task", fresh=False, tags={WORKER: f"{os.getpid()}:1@00000000"})
    assert instance.run_launcher.check_run_worker_health(run).status is WorkerStatus.FAILED
    assert instance.run_launcher.terminate(run.run_id)
    assert get(instance, run.run_id).status is DagsterRunStatus.CANCELED


def test_a_run_of_another_process_is_left_to_it(instance: DagsterInstance, home: Home, tmp_path: Path) -> None:
    run = create_run(instance, compile_plan(load_file(write(tmp_path / "task.yaml"))), "task", fresh=False, tags=None)
    assert instance.run_launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING


def test_a_spec_that_went_bad_fails_the_run_with_the_reason(
    instance: DagsterInstance, home: Home, workspace: Path
) -> None:
    path = write(workspace / "task.yaml")
    plan = compile_plan(load_file(path))
    path.write_text("apiVersion: mloc/v1\nspec: {taskType: ecko}\n")
    run_id = submit(instance, plan, "task")
    assert status(instance, run_id) is DagsterRunStatus.FAILURE
    failures = instance.all_logs(run_id, of_type=DagsterEventType.RUN_FAILURE)
    assert "task.yaml:2:" in failures[0].message and "ecko" in failures[0].message


def test_a_second_worker_of_a_run_does_nothing(
    instance: DagsterInstance, home: Home, tmp_path: Path, nap: None
) -> None:
    run_id = submit_file(instance, home, compile_plan(load_file(write(tmp_path / "nap.yaml", NAP, seconds=3))))
    napping(home)
    second = subprocess.run(
        [sys.executable, "-m", "mloc_dagster.definitions.worker", run_id], capture_output=True, text=True, timeout=60
    )
    assert second.returncode == 0 and "already" in second.stderr
    assert status(instance, run_id) is DagsterRunStatus.SUCCESS
    starts = instance.all_logs(run_id, of_type=DagsterEventType.RUN_START)
    assert len(starts) == 1
