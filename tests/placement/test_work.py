"""One step of a plan, from its inputs to a whole run folder, or to a message that helps."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from mloc_dagster.placement.failures.cause import Cause
from mloc_dagster.placement.local import work
from mloc_dagster.placement.local.work import RunInfo, StepCancelled, StepFailed, StepOutcome, run_step
from mloc_dagster.plan import Plan
from mloc_dagster.store.home import Home
from mloc_dagster.store.results import Envelope, find_result, read_envelope
from tests.placement.conftest import next_run, plan_of, run_all
from tests.waiting import wait_for

TWO = (
    "  stages:\n    - {name: a, taskType: echo, echo: %s}\n    - {name: b, taskType: echo, echo: '${a.result.echo}'}\n"
)
NAP = "  taskType: nap\n  plugin: {seconds: %s}\n"


def envelope(info: RunInfo, stage: str) -> Envelope:
    return read_envelope(info.home.run_folder(info.task_id, stage) / "responses.json")


def failure(plan: Plan, info: RunInfo) -> StepFailed:
    with pytest.raises(StepFailed) as caught:
        run_all(plan, info)
    return caught.value


def test_a_run_folder_is_whole(info: RunInfo, tmp_path: Path) -> None:
    plan = plan_of(TWO % "{words: [x, y]}", tmp_path)
    first, second = run_all(plan, info)
    folder = info.home.results / "task-1" / "b"
    found = envelope(info, "b")
    assert (found.task_id, found.stage) == ("task-1/b", "b")
    assert found.result == {"ok": True, "echo": {"words": ["x", "y"]}}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {entry["name"]: entry["status"] for entry in manifest["entries"]} == {
        "responses.json": "present", "logs": "present",
    }  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == ["logs", "manifest.json", "responses.json"]
    assert [check.passed for check in second.checks] == [True] and second.data_version == found.metadata["digest"]
    assert first.reused_from is None and find_result(info.home, "t", "b") == folder
    assert not [path for path in info.home.work.iterdir() if path.is_dir()]


def test_the_same_work_is_reused_by_another_task_until_it_is_damaged(info: RunInfo, tmp_path: Path) -> None:
    plan = plan_of(TWO % "1", tmp_path)
    run_all(plan, info)
    second = next_run(info, 2)
    assert [outcome.reused_from for outcome in run_all(plan, second)] == ["task-1/a", "task-1/b"]
    assert envelope(second, "b").metadata["reused_from"] == "task-1/b"
    assert envelope(second, "b").task_id == "task-2/b" and envelope(second, "b").result["echo"] == 1
    third = next_run(info, 3, fresh=True)
    assert [outcome.reused_from for outcome in run_all(plan, third)] == [None, None]
    (info.home.results / "task-3" / "b" / "responses.json").write_text("{}")
    fourth = next_run(info, 4)
    assert [outcome.reused_from for outcome in run_all(plan, fourth)] == ["task-3/a", None]


def test_a_change_of_one_stage_does_again_what_comes_after_it(info: RunInfo, tmp_path: Path) -> None:
    run_all(plan_of(TWO % "1", tmp_path), info)
    changed = run_all(plan_of((TWO % "1").replace("'${a.result.echo}'", "'got ${a.result.echo}'"), tmp_path),
                      next_run(info, 2))  # fmt: skip
    assert [outcome.reused_from for outcome in changed] == ["task-1/a", None]
    assert [outcome.reused_from for outcome in run_all(plan_of(TWO % "2", tmp_path), next_run(info, 3))] == [None, None]


def test_a_task_that_is_tried_again_keeps_what_it_finished(info: RunInfo, tmp_path: Path) -> None:
    plan = plan_of(TWO % "1", tmp_path)
    run_step(plan, plan.steps[0], info, lambda progress: None)
    before = envelope(info, "a")
    again = run_all(plan, replace(info, run_id="run-2"))
    assert envelope(info, "a") == before and again[0].reused_from is None


def test_work_that_is_done_is_not_done_again_when_putting_it_away_failed(
    info: RunInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of("  taskType: echo\n  echo: 1\n", tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(work, "finish", full)
        found = failure(plan, info)
    assert found.cause is Cause.INTERNAL and "is done, but its result could not be put away" in str(found)
    monkeypatch.setattr(work, "_execute", lambda *_: pytest.fail("it is done again"))
    run_all(plan, replace(info, run_id="run-2"))
    assert envelope(info, "echo").result["echo"] == 1


def test_fresh_work_that_was_interrupted_goes_on_from_what_the_same_task_has_stored(
    info: RunInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of("  taskType: echo\n  echo: 1\n", tmp_path)
    seen = []

    def lost(job: Path) -> None:
        seen.append(json.loads(job.read_text())["fresh"])
        raise StepFailed("lost", Cause.WORKER_LOST)

    monkeypatch.setattr(work, "_execute_here", lost)
    for one in (info, replace(info, run_id="run-2"), next_run(info, 3)):
        failure(plan, replace(one, fresh=True))
    assert seen == [True, False, True]


def test_progress_that_cannot_be_noted_ends_no_work(info: RunInfo, tmp_path: Path, nap: None) -> None:
    (info.home.logs / f"{info.run_id}.progress.jsonl").mkdir(parents=True)
    seen: list[object] = []
    run_all(plan_of(NAP % 0.2, tmp_path), info, seen.append)
    assert envelope(info, "nap").result


def test_of_two_runs_of_the_same_work_one_does_it(info: RunInfo, tmp_path: Path, nap: None) -> None:
    plan = plan_of(NAP % 0.5, tmp_path)
    outcomes: dict[int, StepOutcome] = {}

    def run(number: int) -> None:
        outcomes[number] = run_all(plan, next_run(info, number))[0]

    threads = [threading.Thread(target=run, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [number for number, outcome in outcomes.items() if outcome.reused_from is None]
    assert len(done) == 1 and len(outcomes) == 3
    others = {outcome.reused_from for number, outcome in outcomes.items() if number not in done}
    assert others == {f"task-{done[0]}/nap"}


def test_waiting_for_the_same_work_can_be_cancelled(info: RunInfo, tmp_path: Path) -> None:
    plan = plan_of("  taskType: echo\n  echo: 1\n", tmp_path)
    digest = run_all(plan, info)[0].data_version
    with (info.home.work / f"{digest}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StepCancelled, match="cancelled while waiting"):
            run_all(plan, next_run(info, 2, cancelled=lambda: True))


def test_no_secret_is_stored(info: RunInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "hunter2-hunter2")
    run_all(plan_of("  taskType: echo\n  echo: 'my ${KEY}'\n", tmp_path), info)
    assert envelope(info, "echo").result["echo"] == "my ***"
    stored = [path for path in info.home.root.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
    assert stored == []


def test_a_users_mistake_is_a_message(info: RunInfo, tmp_path: Path) -> None:
    error = failure(plan_of("  taskType: echo\n  echo: '${NOT_SET_ANYWHERE}'\n", tmp_path), info)
    assert error.cause is Cause.USER and "${NOT_SET_ANYWHERE} is not set where this step runs" in str(error)
    assert not (info.home.results / "task-1" / "echo").exists()


def test_a_source_that_is_not_there_is_told_and_may_be_tried_again(info: RunInfo, tmp_path: Path) -> None:
    error = failure(plan_of("  taskType: sft\n  model: {source: {type: local, identifier: ./none}}\n"
                            "  data: {prompts: [a]}\n", tmp_path), info)  # fmt: skip
    assert f"{tmp_path}/none" in str(error) and error.cause is Cause.INTERNAL


def test_hardware_that_is_not_here_is_told(info: RunInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    text = "  taskType: echo\n  echo: 1\n  resources: {hardware: {gpu: {type: h100, count: 64}}}\n"
    error = failure(plan_of(text, tmp_path), replace(info, on_cpu=False))
    assert error.cause is Cause.USER and str(error).startswith("echo needs 64 × h100 GPU, this machine has")
    run_all(plan_of(text, tmp_path), info)
    assert envelope(info, "echo").metadata["placement_note"] == "64 × h100 asked for, run on the CPU"


def test_a_time_limit_ends_the_work(info: RunInfo, tmp_path: Path, nap: None) -> None:
    error = failure(plan_of(NAP % 60 + "  timeoutSeconds: 1.5\n", tmp_path), info)
    assert error.cause is Cause.TIMED_OUT and str(error) == "nap ran longer than timeoutSeconds 1.5 and was ended"


@pytest.mark.parametrize(
    ("number", "why", "cause"),
    [
        (signal.SIGKILL, "by signal 9 (from outside)\n", Cause.WORKER_LOST),
        (signal.SIGABRT, "by signal 6\n", Cause.INTERNAL),
    ],
)
def test_work_that_is_killed_may_be_tried_again(
    info: RunInfo, tmp_path: Path, nap: None, number: signal.Signals, why: str, cause: Cause
) -> None:
    def kill() -> None:
        wait_for(lambda: len(list(info.home.work.glob("*/pids"))) == 1, "the work to start")
        file = next(info.home.work.glob("*/pids"))
        wait_for(lambda: len(file.read_text().split()) == 2, "both processes")
        host, child = (int(pid) for pid in file.read_text().split())
        children.append(child)
        os.kill(host, number)

    children: list[int] = []
    thread = threading.Thread(target=kill)
    thread.start()
    error = failure(plan_of(NAP % 60, tmp_path), info)
    thread.join()
    assert error.cause is cause
    assert str(error).startswith(f"nap was killed {why}") and "stdout.log" in str(error)
    wait_for(lambda: not psutil.pid_exists(children[0]), "the child process to end")
    run_all(plan_of(NAP % 0.1, tmp_path), info)  # nothing is in the way of the next attempt


def test_progress_is_written_for_whoever_follows(info: RunInfo, tmp_path: Path, nap: None) -> None:
    seen: list[object] = []
    text = "  taskType: echo\n  echo: 1\n  timeoutSeconds: 60\n"  # which takes a process of its own
    run_all(plan_of(text, tmp_path), info, seen.append)
    lines = (info.home.logs / "run-1.progress.jsonl").read_text().splitlines()
    assert len(lines) == len(seen) >= 1
    assert {key: json.loads(lines[-1])[key] for key in ("step", "done", "total")} == {
        "step": "t/echo", "done": 1, "total": 1,
    }  # fmt: skip


def test_a_pull_tells_what_it_got(info: RunInfo, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    plan = plan_of("  taskType: sft\n  model: {source: {type: local, identifier: ./m}}\n"
                   "  data: {dataset_name: ./rows.jsonl}\n", tmp_path)  # fmt: skip
    outcomes = [run_step(plan, step, info, lambda progress: None) for step in plan.steps[:2]]
    assert [outcome.metadata["bytes"] for outcome in outcomes] == [2, 3]
    assert outcomes[0].folder and (outcomes[0].folder / "config.json").read_text() == "{}"
    assert outcomes[0].data_version == outcomes[0].metadata["digest"] != outcomes[1].data_version


PUBLISHED = "  taskType: echo\n  output: {destination: {type: local, path: out}}\n  stages: %s\n"


def test_a_result_is_delivered_also_when_it_was_reused(info: RunInfo, tmp_path: Path, own_home: Home) -> None:
    plan = plan_of(PUBLISHED % "[{name: a, echo: 1}]", tmp_path)
    with pytest.raises(StepFailed, match="stage a has no result to publish; run it first"):
        run_step(plan, plan.steps[-1], info, lambda progress: None)
    for run in (info, next_run(info, 2)):
        outcome = run_all(plan, run)[-1]
        assert outcome.metadata["delivered_to"] == str(own_home.results / "out")
        assert read_envelope(own_home.results / "out" / "responses.json").task_id == f"{run.task_id}/a"


def test_no_stage_replaces_what_another_one_delivered(info: RunInfo, tmp_path: Path, own_home: Home) -> None:
    run_all(plan_of(PUBLISHED % "[{name: a, echo: 1}, {name: b, echo: 2}]", tmp_path), info)
    out = own_home.results / "out"
    assert [read_envelope(out / name / "responses.json").result["echo"] for name in "ab"] == [1, 2]


def test_a_delivery_that_fails_is_not_started_over_by_the_step(info: RunInfo, tmp_path: Path, own_home: Home) -> None:
    own_home.results.mkdir(parents=True)
    (own_home.results / "out").write_text("a file of mine")
    error = failure(plan_of(PUBLISHED % "[{name: a, echo: 1}]", tmp_path), info)
    assert error.cause is Cause.DELIVERY and "out is a file; write another output.destination.path" in str(error)
    assert (own_home.results / "out").read_text() == "a file of mine" and envelope(info, "a").result["echo"] == 1
