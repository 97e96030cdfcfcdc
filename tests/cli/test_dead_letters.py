"""`mloc dead-letters` and `mloc replay`: what failed for good is listed, and done again from what was finished."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dagster import DagsterEvent, DagsterEventType, DagsterInstance, DagsterRun

from mloc_dagster.definitions.execution import REPLAY_OF
from mloc_dagster.definitions.instance import DAGSTER_YAML, open_instance
from mloc_dagster.definitions.submit import create_run, store_spec
from mloc_dagster.definitions.worker import execute
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_file
from mloc_dagster.store.results import read_envelope
from tests.cli.conftest import Mloc
from tests.definitions.conftest import get, write

TWO = """\
apiVersion: mloc/v1
metadata: {{name: {name}, owner: ann}}
spec:
  taskType: echo
  stages:
    - {{name: first, spec: {{echo: 1}}}}
    - {{name: second, dependsOn: [first], spec: {{echo: "[${{LATER}}]"}}}}
"""
Carry = Callable[[str], str]


@pytest.fixture
def instance(mloc: Mloc, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    """The command's instance; runs that are submitted wait, for the test to execute them here."""
    monkeypatch.setenv("MLOC_HOME", str(mloc.home.root))
    monkeypatch.setenv("DAGSTER_HOME", str(mloc.home.dagster))
    mloc.home.dagster.mkdir(parents=True)
    settings = DAGSTER_YAML.replace("without_daemon: launch", "without_daemon: wait")
    (mloc.home.dagster / "dagster.yaml").write_text(settings)
    with open_instance(mloc.home) as found:
        yield found


@pytest.fixture
def carry(instance: DagsterInstance, mloc: Mloc, tmp_path: Path) -> Carry:
    """Run the task of a name; returns its run."""

    def do(name: str) -> str:
        plan = compile_plan(load_file(write(tmp_path / f"{name}.yaml", TWO)))
        run = create_run(instance, plan, store_spec(mloc.home, plan.task), fresh=True, tags=None)
        execute(instance, run.run_id)
        return run.run_id

    return do


def begin(instance: DagsterInstance, run_id: str) -> None:
    """Execute a run that waits, as a daemon would have it done."""
    run = get(instance, run_id)
    instance.report_dagster_event(DagsterEvent(DagsterEventType.RUN_STARTING.value, run.job_name), run_id)
    execute(instance, run_id)


def letters(mloc: Mloc, *arguments: str) -> list[str]:
    return [letter["run_id"] for letter in json.loads(mloc.here("dead-letters", "--json", *arguments).out)]


def test_a_task_that_failed_is_listed_and_replayed(
    mloc: Mloc, instance: DagsterInstance, carry: Carry, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no dead letters" in mloc.here("dead-letters").out
    run_id = carry("two")
    listed = mloc.here("dead-letters")
    for part in (run_id[:8], "two", "second", "user", "${LATER} is not set"):
        assert part in listed.out
    assert "mloc replay ID" in listed.errors
    [letter] = json.loads(mloc.here("dead-letters", "--json").out)
    assert (letter["stage"], letter["cause"], letter["attempts"], letter["owner"]) == ("second", "user", 1, "ann")
    [row] = json.loads(mloc.here("list", "--json").out)
    assert (row["status"], row["cause"], row["replay_of"]) == ("FAILURE", "user", None)
    shown = mloc.here("show", run_id)
    assert f"(user; again: mloc replay {run_id[:8]})" in shown.out
    told = json.loads(mloc.here("show", run_id, "--json").out)
    assert told["cause"] == told["errors"][0]["cause"] == "user" and told["errors"][0]["step"] == "two/second"

    monkeypatch.setenv("LATER", "now")
    answer = mloc.here("replay", run_id[:8], "--json")
    [started] = json.loads(answer.out)["started"]
    assert answer.code == 0 and started["replay_of"] == run_id
    assert letters(mloc) == [], "the replay stands for it"
    again = mloc.here("replay", run_id)
    assert again.code == 2 and f"has been replayed already: {started['task_id'][:8]} is QUEUED" in again.errors

    begin(instance, started["task_id"])
    replay = get(instance, started["task_id"])
    assert replay.is_success, replay.status
    assert replay.tags[REPLAY_OF] == run_id
    folders = (mloc.home.run_folder(run_id, stage) / "responses.json" for stage in ("first", "second"))
    first, second = map(read_envelope, folders)
    assert second.result["echo"] == "[now]"
    assert (first.metadata["run_id"], second.metadata["run_id"]) == (run_id, replay.run_id), "a stage was done twice"
    assert letters(mloc) == []


def test_all_dead_letters_are_replayed_by_cause(mloc: Mloc, instance: DagsterInstance, carry: Carry) -> None:
    runs = {carry("one"), carry("two")}
    assert set(letters(mloc)) == set(letters(mloc, "--cause", "user")) == runs
    assert letters(mloc, "--cause", "worker_lost") == [] and len(letters(mloc, "-n", "1")) == 1
    assert "0 started" in mloc.here("replay", "--all", "--cause", "worker_lost").out
    assert "2 started" in mloc.here("replay", "--all", "--cause", "user").out
    assert {run.tags[REPLAY_OF] for run in instance.get_runs() if REPLAY_OF in run.tags} == runs


def test_a_replay_that_fails_is_the_dead_letter_then_and_a_success_of_the_same_file_settles_it(
    mloc: Mloc, instance: DagsterInstance, carry: Carry, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = carry("two")
    [started] = json.loads(mloc.here("replay", run_id, "--json").out)["started"]
    begin(instance, started["task_id"])
    assert letters(mloc) == [started["task_id"]]
    monkeypatch.setenv("LATER", "now")
    carry("two")
    assert letters(mloc) == []


def test_what_cannot_be_replayed_is_told(
    mloc: Mloc, instance: DagsterInstance, carry: Carry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failed = carry("gone")
    monkeypatch.setenv("LATER", "now")
    done = carry("done")
    plan = compile_plan(load_file(write(tmp_path / "waits.yaml", TWO)))
    waits: DagsterRun = create_run(instance, plan, store_spec(mloc.home, plan.task), fresh=False, tags=None)
    next(mloc.home.specs.glob("gone__*.yaml")).unlink()
    for arguments, told in (
        (("nothing",), "there is no task 'nothing' here"),
        ((done,), f"{done[:8]} is SUCCESS; only what failed or was cancelled is replayed"),
        ((waits.run_id,), f"{waits.run_id[:8]} is NOT_STARTED; only what failed or was cancelled is replayed"),
        ((failed,), f"the task file of {failed[:8]} (job"),
        ((), "mloc replay wants one task, or --all"),
        ((failed, "--all"), "mloc replay wants one task, or --all"),
        ((failed, "--cause", "user"), "--cause chooses among --all"),
        (("--all", "--cause", "bad luck"), "causes: user, out_of_memory, worker_lost, timed_out, delivery, internal"),
    ):
        answer = mloc.here("replay", *arguments)
        assert answer.code == 2 and told in answer.errors, (arguments, answer)
    instance.report_run_canceled(waits)
    assert mloc.here("replay", waits.run_id).code == 0, "a cancelled run is replayed"
    assert waits.run_id not in letters(mloc)


def test_a_file_of_the_workspace_that_changed_is_not_replayed_in_place_of_the_old_one(
    mloc: Mloc, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLOC_TASK_SPECS", str(tmp_path / "task_specs"))
    path = write(tmp_path / "task_specs" / "mine.yaml", TWO)
    run = create_run(instance, compile_plan(load_file(path)), "mine", fresh=False, tags=None)
    execute(instance, run.run_id)
    path.write_text(path.read_text().replace("echo: 1", "echo: 2"))
    answer = mloc.here("replay", run.run_id)
    assert answer.code == 2 and f"the task file of {run.run_id[:8]} has changed since" in answer.errors
    assert "mloc run FILE" in answer.errors
