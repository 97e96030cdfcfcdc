"""run, submit, list, show, logs, cancel on real runs: exit code 1 is a failed task, 2 the user's mistake."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest
from dagster import DagsterInstance
from dagster._core.instance.ref import InstanceRef
from dagster._core.test_utils import create_run_for_test

from tests.cli.conftest import NAP, Mloc, processes_of, write
from tests.waiting import wait_for

FAILS = """\
apiVersion: mloc/v1
metadata: {name: fails, owner: bob}
spec:
  taskType: echo
  retry: {max_retries: 0}
  stages:
    - {name: good, echo: 1}
    - {name: bad, echo: "${NOT_SET_ANYWHERE}"}
    - {name: after, echo: 2}
"""


@pytest.fixture
def failed(mloc: Mloc) -> str:
    """The id of a task that failed in its second stage."""
    (mloc.folder / "fails.yaml").write_text(FAILS)
    answer = mloc("run", "--json", "fails.yaml")
    assert answer.code == 1
    return json.loads(answer.out)["task_id"]


def pids(mloc: Mloc) -> list[int]:
    """Of a nap and its child, once both are there."""

    def read() -> list[int]:
        found = [file.read_text().split() for file in mloc.home.work.glob("*/pids")]
        return [int(pid) for pid in found[0]] if found and len(found[0]) == 2 else []

    wait_for(lambda: bool(read()), "the nap to start")
    return read()


def alive(numbers: list[int]) -> list[int]:
    return [n for n in numbers if psutil.pid_exists(n) and psutil.Process(n).status() != psutil.STATUS_ZOMBIE]


def test_a_run_tells_its_results(mloc: Mloc) -> None:
    write(mloc.folder / "two.yaml")
    answer = mloc("run", "two.yaml")
    assert answer.code == 0 and "echo: text one" in answer.out and "echo: text two" in answer.out
    assert "success: two " in answer.out and str(mloc.home.results) in answer.out
    again = mloc("run", "two.yaml")
    assert again.out.count("reused from ") == 2
    listed = json.loads(mloc("list", "--json").out)
    assert [(row["task"], row["owner"], row["status"]) for row in listed] == [("two", "alice", "SUCCESS")] * 2
    assert len(json.loads(mloc.here("list", "--json", "-n", "1").out)) == 1
    shown = json.loads(mloc.here("show", "--json", listed[0]["task_id"][:6]).out)
    assert shown["task_id"] == listed[0]["task_id"] and set(shown["stages"]) == {"first", "second"}
    assert json.loads(mloc.here("show", "--json", "two").out)["task_id"] == listed[0]["task_id"]


def test_a_failed_task_says_why(mloc: Mloc, failed: str) -> None:
    told = json.loads(mloc.here("show", "--json", failed).out)
    assert told["status"] == "FAILURE" and set(told["stages"]) == {"good"}
    assert [(step["step"], step["status"]) for step in told["steps"]] == [
        ("fails/good", "SUCCESS"),
        ("fails/bad", "FAILURE"),
        ("fails/after", "not run"),
    ]
    assert [error["step"] for error in told["errors"]] == ["fails/bad"]
    assert (
        "${NOT_SET_ANYWHERE} is not set where this step runs; export NOT_SET_ANYWHERE" in told["errors"][0]["message"]
    )
    shown = mloc("show", "fails")
    assert shown.code == 0 and "fails/bad: ${NOT_SET_ANYWHERE} is not set" in shown.out
    assert mloc("run", "fails.yaml", NOT_SET_ANYWHERE="here").code == 0
    states = [row["status"] for row in json.loads(mloc.here("list", "--json", "--status", "failure").out)]
    assert states == ["FAILURE"]


def test_a_result_that_was_damaged_is_told(mloc: Mloc, failed: str) -> None:
    folder = mloc.home.results / failed / "good"
    (folder / "responses.json").write_text("{")
    (folder.parent / ".good.replaced").mkdir()
    (folder.parent / ".good.replaced" / "responses.json").write_text("{")
    shown = mloc.here("show", failed)
    assert shown.code == 0 and f"good: {folder}/responses.json cannot be read" in shown.out
    assert ".good.replaced" not in shown.out


def test_nothing_is_found_by_a_wrong_name(mloc: Mloc, failed: str) -> None:
    for command, name in (("show", "other"), ("logs", failed[:6] + "zz"), ("cancel", "")):
        answer = mloc.here(command, name)
        assert (answer.code, answer.out) == (2, "") and f"there is no task {name!r} here" in answer.errors
    answer = mloc.here("cancel", failed)
    assert answer.code == 2 and f"{failed[:8]} is FAILURE already" in answer.errors
    answer = mloc.here("list", "--status", "FAILED")
    assert answer.code == 2 and "did you mean FAILURE?" in answer.errors


def test_letters_that_several_ids_start_with_are_not_enough(mloc: Mloc, monkeypatch: pytest.MonkeyPatch) -> None:
    write(mloc.folder / "two.yaml")
    assert mloc("run", "two.yaml").code == 0
    monkeypatch.setenv("DAGSTER_HOME", str(mloc.home.dagster))
    with DagsterInstance.from_ref(InstanceRef.from_dir(str(mloc.home.dagster))) as instance:
        for digit in "12":
            create_run_for_test(instance, run_id=f"0000000{digit}-0000-4000-8000-000000000000")
    answer = mloc.here("show", "0000")
    assert answer.code == 2 and "'0000' means 2 runs" in answer.errors and "00000001-000" in answer.errors


def test_a_submitted_task_goes_on_and_is_followed(mloc: Mloc, nap: None) -> None:
    write(mloc.folder / "nap.yaml", NAP, seconds=3)
    answer = mloc("submit", "nap.yaml")
    task = answer.out.split()[0]
    assert answer.code == 0 and f"mloc logs -f {task[:8]}" in answer.out
    assert json.loads(mloc.here("list", "--json").out)[0]["status"] in ("STARTING", "STARTED")
    followed = mloc("logs", "-f", task[:8])
    assert followed.code == 0 and "STEP_SUCCESS nap__nap" in followed.out and "PIPELINE_SUCCESS" in followed.out
    assert json.loads(mloc.here("show", "--json", task).out)["stages"]["nap"]["result"] == {"slept": True}
    once = mloc.here("logs", task).out
    assert sorted(once.splitlines()) == sorted(followed.out.splitlines()), "following missed or repeated lines"


def test_cancel_ends_all_processes(mloc: Mloc, nap: None) -> None:
    write(mloc.folder / "nap.yaml", NAP, seconds=300)
    task = json.loads(mloc("submit", "--json", "nap.yaml").out)["task_id"]
    working = pids(mloc)
    answer = mloc("cancel", "nap")
    assert answer.code == 0 and answer.out == f"{task[:8]} is CANCELED\n"
    wait_for(lambda: not alive(working) and not processes_of(mloc.folder), "all processes to end")
    assert json.loads(mloc.here("show", "--json", task).out)["status"] == "CANCELED"


def test_ctrl_c_cancels_the_run(mloc: Mloc, nap: None) -> None:
    write(mloc.folder / "nap.yaml", NAP, seconds=300)
    process = mloc.start("run", "nap.yaml")
    working = pids(mloc)
    os.kill(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "cancelling" in errors and "canceled: nap" in out
    assert "Traceback" not in out + errors
    wait_for(lambda: not alive(working), "all processes to end")


def test_a_closed_pipe_is_no_fault(mloc: Mloc, failed: str) -> None:
    process = mloc.start("logs", failed)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.wait(30)


def test_a_run_finds_files_beside_its_task_file(mloc: Mloc, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "rows.jsonl").write_text('{"a": "x", "out": "x"}\n')
    (folder / "score.yaml").write_text(
        "apiVersion: mloc/v1\nmetadata: {name: score}\nspec:\n  stages:\n"
        "    - {name: a, taskType: echo, echo: [{index: 0, prompt: p, output: x, metadata: {answer: x}}]}\n"
        "    - name: judge\n      taskType: evaluation\n"
        "      evaluation: {candidates: {a: '${a.result.echo}'}, reference: metadata.answer}\n"
    )
    answer = mloc("run", "--json", "elsewhere/score.yaml")
    told = json.loads(answer.out)
    assert answer.code == 0, told["errors"]
    assert told["stages"]["judge"]["result"]["metrics"]["exact_match"] == {"a": 1.0}
