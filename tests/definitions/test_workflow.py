"""`workflow_config`: what runs after a failure, in which order, and what the whole file hands out."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import DagsterEventType, DagsterInstance

from mloc_dagster.definitions.assets import build_job
from mloc_dagster.definitions.execution import TASK_ID
from mloc_dagster.plan.compiler import compile_plan
from mloc_dagster.spec import SpecError, load_text

ITEMS = {"type": "list", "items": ["one", "two"]}
ENDS = {
    DagsterEventType.STEP_SUCCESS, DagsterEventType.STEP_FAILURE, DagsterEventType.STEP_SKIPPED
}  # fmt: skip


def echo(name: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "taskType": "echo", "data": ITEMS, **keys}


BROKEN = echo("broken", data={"type": "list", "items": ["${first.result.nowhere}"]})


def run(stages: list[dict[str, Any]], home: Path, monkeypatch: pytest.MonkeyPatch, **workflow: Any) -> dict[str, str]:
    """Run a file in this process; the state of every step that ended, in their order."""
    monkeypatch.setenv("MLOC_HOME", str(home))
    spec = {"workflow_config": workflow, "stages": stages}
    task = load_text(yaml.safe_dump({"apiVersion": "mloc/v1", "metadata": {"name": "w"}, "spec": spec}))
    job = build_job(compile_plan(task), "w").job
    with DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance, raise_on_error=False, tags={TASK_ID: "t1"})
        ended = instance.all_logs(result.run_id, of_type=ENDS)
    return {
        str(entry.step_key).removeprefix("w__"): entry.get_dagster_event().event_type_value.removeprefix("STEP_")
        for entry in ended
    }


def test_without_a_strategy_what_waits_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [echo("first"), BROKEN, echo("after"), echo("apart", dependsOn=["first"])]
    states = run(stages, tmp_path, monkeypatch)
    assert (states["first"], states["broken"], states["apart"]) == ("SUCCESS", "FAILURE", "SUCCESS")
    assert states.get("after", "SKIPPED") == "SKIPPED"


def test_stop_starts_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [echo("first"), BROKEN, echo("apart", dependsOn=["first"])]
    states = run(stages, tmp_path, monkeypatch, failure_strategy="stop")
    assert (states["broken"], states["apart"]) == ("FAILURE", "FAILURE")
    assert not (tmp_path / "results" / "t1" / "apart").exists()


def test_continue_runs_what_does_not_read_the_failed_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = echo("reader", data={"type": "list", "items": ["${broken.result.echo}"]})
    other = echo("other", data={"type": "list", "items": ["${first.result.echo}"]})
    states = run([echo("first"), BROKEN, reader, other], tmp_path, monkeypatch, failure_strategy="continue")
    assert (states["first"], states["broken"], states["other"]) == ("SUCCESS", "FAILURE", "SUCCESS")
    assert states.get("reader", "SKIPPED") == "SKIPPED"


def test_continue_keeps_the_order_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["zeta", "alpha", "mid"]
    states = run([echo(name) for name in names], tmp_path, monkeypatch, failure_strategy="continue")
    assert list(states) == names


def test_the_final_output_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = {"source": "first.result.echo", "format": "csv", "path": "/mnt/reports/rows.csv"}
    states = run([echo("first"), echo("second")], tmp_path, monkeypatch, final_output=final)
    assert states["published__w__final_output"] == "SUCCESS"
    with (tmp_path / "results" / "reports" / "rows.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["value"] for row in rows] == ["one", "two"]


def test_without_a_source_it_is_the_last_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run([echo("first"), echo("second", data={"type": "list", "items": ["x"]})], tmp_path, monkeypatch, final_output={})
    written = json.loads((tmp_path / "results" / "w" / "final_output.json").read_text("utf-8"))
    assert written["echo"] == ["x"]


def test_several_stages_stand_under_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run([echo("a"), echo("b")], tmp_path, monkeypatch, final_output={"include": ["a", "b.result.ok"], "path": "all"})
    written = json.loads((tmp_path / "results" / "all" / "final_output.json").read_text("utf-8"))
    assert written["a"]["ok"] is True and written["b.result.ok"] is True


def test_rows_are_needed_for_jsonl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = run([echo("a")], tmp_path, monkeypatch, final_output={"format": "jsonl"})
    assert states["published__w__final_output"] == "FAILURE"


def load(workflow: str) -> Any:
    text = (
        f"apiVersion: mloc/v1\nspec:\n  workflow_config: {workflow}\n  stages:\n    - {{name: draft, taskType: echo}}\n"
    )
    return load_text(text)


def test_an_unknown_stage_and_a_path_outside_are_refused() -> None:
    with pytest.raises(SpecError) as error:
        load("{final_output: {source: drafts, include: [draft.result.x], path: ../out}}")
    what = {fault.path: f"{fault.what}; {fault.way_out}" for fault in error.value.faults}
    assert "did you mean draft" in what["spec.workflow_config.final_output.source"]
    assert "inside the results folder" in what["spec.workflow_config.final_output.path"]


def test_what_changes_nothing_is_warned_about() -> None:
    task = load("{shared_storage: {base_path: /x}, execution_mode: parallel, failure_strategy: continue,"
                " final_output: {colour: red}}")  # fmt: skip
    assert {warning.path.removeprefix("spec.workflow_config.") for warning in task.warnings} == {
        "shared_storage", "execution_mode", "final_output.colour"
    }  # fmt: skip
