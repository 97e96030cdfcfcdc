"""What Dagster is told of a plan, and of what came out of its steps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from dagster import AssetKey, DagsterInstance, ExecuteInProcessResult

from mloc_dagster.definitions.assets import TaskJob, build_job
from mloc_dagster.definitions.curves import draw
from mloc_dagster.placement.failures.cause import Cause
from mloc_dagster.placement.local import work
from mloc_dagster.placement.local.work import Check, StepFailed, StepOutcome
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_text
from mloc_dagster.spec.base import Json
from mloc_dagster.store.home import Home

PIPELINE = """\
apiVersion: mloc/v1
metadata: {name: tune, owner: ann@example.org, project: my-project}
spec:
  stages:
    - name: train
      spec:
        taskType: lora_sft
        model: {source: {type: huggingface, identifier: org/base-7B}}
        data: {dataset_name: org/rows, prompt_column: q, response_column: a}
        output: {destination: {type: http, url: "https://me:hunter2@example.org/in", headers: {X-Key: hunter2}}}
    - name: write
      dependsOn: [train]
      spec:
        taskType: inference
        model:
          source: {type: huggingface, identifier: org/base-7B}
          vllm: {max_model_len: 512}
        inference: {max_tokens: 7}
        data: {type: list, items: [hello]}
"""
ECHO = "apiVersion: mloc/v1\nmetadata: {name: task}\nspec: {taskType: echo, echo: 1}\n"


def job_of(text: str, folder: Path) -> TaskJob:
    """Return the job of a task file's text."""
    return build_job(compile_plan(load_text(text, base=folder)), "job")


def test_keys_groups_kinds_owners_and_checks(tmp_path: Path) -> None:
    built = job_of(PIPELINE, tmp_path)
    specs = {key.to_user_string(): spec for asset in built.assets for key, spec in asset.specs_by_key.items()}
    assert {name: (spec.group_name, spec.kinds) for name, spec in specs.items()} == {
        "model/org/base-7B": ("models", {"model", "huggingface"}),
        "dataset/org/rows": ("datasets", {"dataset", "huggingface"}),
        "tune/train": ("my_project", {"lora-sft", "pytorch"}),
        "tune/write": ("my_project", {"inference", "vllm"}),
        "published/tune/train": ("my_project", {"publish", "http"}),
    }
    assert specs["tune/train"].owners == ["ann@example.org"] and not specs["model/org/base-7B"].owners
    assert {dep.asset_key for dep in specs["tune/write"].deps} == {
        AssetKey(["model", "org", "base-7B"]),
        AssetKey(["tune", "train"]),
    }
    checks = {(key.asset_key.path[-1], key.name) for asset in built.assets for key in asset.check_keys}
    assert checks == {
        ("train", "artifacts_present"),
        ("train", "loss_finite"),
        ("train", "weights_changed"),
        ("write", "artifacts_present"),
    }


def test_what_is_shown_of_the_spec_holds_no_secret(tmp_path: Path) -> None:
    shown = json.dumps([str(spec) for asset in job_of(PIPELINE, tmp_path).assets for spec in asset.specs])
    assert "hunter2" not in shown
    assert "max_tokens: 7" in shown and "https://***@example.org/in" in shown


Run = Callable[[StepOutcome | Exception], ExecuteInProcessResult]


@pytest.fixture
def run(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a job of one step whose work has a given outcome."""

    def with_outcome(outcome: StepOutcome | Exception) -> ExecuteInProcessResult:
        def run_step(*arguments: object) -> StepOutcome:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(work, "run_step", run_step)
        with DagsterInstance.ephemeral() as instance:
            return job_of(ECHO, tmp_path).job.execute_in_process(instance=instance, raise_on_error=False)

    return with_outcome


def test_values_curves_checks_and_data_version_are_on_the_materialization(run: Run) -> None:
    history: tuple[dict[str, Json], ...] = tuple({"step": step, "loss": 1.0 / step} for step in range(1, 20))
    sample = [{"prompt": "a|b", "output": "two\nlines"}]
    outcome = StepOutcome(
        {"rows": 3, "folder": "/x", "sample": sample, "metrics/bad": math.nan},
        "v1",
        (Check("artifacts_present", True, {"losses": [math.inf]}),),
        log_history=history,
    )
    result = run(outcome)
    (event,) = result.get_asset_materialization_events()
    metadata = event.materialization.metadata
    assert metadata["rows"].value == 3 and metadata["final_loss"].value == pytest.approx(1 / 19)
    assert metadata["loss_curve"].value.count("\n") > 8 and metadata["metrics/bad"].value == "nan"
    assert "| a\\|b | two lines |" in metadata["sample"].value
    assert (event.materialization.tags or {})["dagster/data_version"] == "v1"
    (check,) = result.get_asset_check_evaluations()
    assert check.passed and check.metadata["losses"].value == ["inf"]


def test_a_check_that_the_step_did_not_report_has_failed(run: Run) -> None:
    (check,) = run(StepOutcome({}, "v1")).get_asset_check_evaluations()
    assert not check.passed


def test_a_users_fault_is_not_tried_again(run: Run) -> None:
    result = run(StepFailed("no such column: q; columns: a, b", Cause.USER))
    assert not result.success
    (failure,) = result.get_step_failure_events()
    assert "no such column: q" in str(failure.step_failure_data.user_failure_data)
    assert not result.filter_events(lambda event: event.is_step_up_for_retry)


def test_a_curve_shows_its_range_and_falls_as_its_values_do() -> None:
    chart = draw("loss", [(step, 100.0 - step) for step in range(100)]).splitlines()
    assert chart[0] == "loss by step" and chart[1].startswith("100 ┤") and chart[-1].split() == ["0", "99"]
    widths = [len(line) for line in chart[1:-1]]
    assert widths == sorted(widths) and widths[-1] == len("100 ┤") + 64


def test_a_flat_curve_is_drawn() -> None:
    assert "▁▁" in draw("loss", [(1, 2.0), (2, 2.0)])
