"""Envelopes, and how finished ones are found again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from mloc_dagster.store.home import Home
from mloc_dagster.store.results import Envelope, find_result, note_task, read_envelope, write_envelope


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def finish(home: Home, task_id: str, stage: str, at: int, name: str | None = None, root: Path | None = None) -> Path:
    """Write a finished stage, `at` seconds after the epoch."""
    folder = root or home.run_folder(task_id, stage)
    envelope = Envelope(
        task_id=f"{task_id}/{stage}", stage=stage, worker="w", metadata={}, received_at="now", result={"at": at}
    )
    write_envelope(folder, envelope)
    os.utime(folder / "responses.json", (at, at))
    if name:
        note_task(home, name, task_id)
    return folder


def test_an_envelope_is_read_as_it_was_written(home: Home) -> None:
    folder = finish(home, "t1", "train", 1)
    assert read_envelope(folder / "responses.json").result == {"at": 1}


def test_a_loss_that_is_no_number_is_not_lost(tmp_path: Path) -> None:
    result = {"log_history": [{"loss": float("nan")}, {"loss": float("inf")}]}
    envelope = Envelope(task_id="t/s", stage="s", worker="w", metadata={}, received_at="now", result=result)
    write_envelope(tmp_path, envelope)
    losses = [float(entry["loss"]) for entry in read_envelope(tmp_path / "responses.json").result["log_history"]]
    assert str(losses) == "[nan, inf]"


def test_what_is_no_envelope_is_refused(tmp_path: Path) -> None:
    (tmp_path / "responses.json").write_text('{"task_id": "t", "extra": 1}')
    with pytest.raises(ValidationError, match="extra"):
        read_envelope(tmp_path / "responses.json")


def test_a_result_is_found_by_task_id_stage_and_name(home: Home) -> None:
    draft, train = finish(home, "t1", "draft", 1, "demo"), finish(home, "t1", "train", 2, "demo")
    assert find_result(home, "t1") == find_result(home, "demo") == train
    assert find_result(home, "t1/draft") == find_result(home, "t1", "draft") == draft
    assert find_result(home, "demo", "draft") == draft
    assert find_result(home, "demo", "absent") is None
    assert find_result(home, "absent") is None


def test_a_name_means_its_latest_finished_result(home: Home) -> None:
    newest = finish(home, "t1", "train", 9, "demo")
    finish(home, "t2", "train", 5, "demo")
    home.run_folder("t3", "train").mkdir(parents=True)
    note_task(home, "demo", "t3")
    assert find_result(home, "demo") == newest


def test_a_result_that_is_being_replaced_is_not_found(home: Home) -> None:
    finish(home, "t1", "train", 1, root=home.results / "t1" / ".train.replaced")
    assert find_result(home, "t1") is None


def test_a_delivery_named_like_its_task_does_not_hide_the_results(home: Home) -> None:
    train = finish(home, "t1", "train", 1, "demo")
    finish(home, "t1", "train", 1, root=home.resolve_inside("./demo"))
    assert find_result(home, "demo") == train


@pytest.mark.parametrize(
    "reference", ["", "/", "..", "../secret", "../../secret", "t1/../../../secret", "t1//etc", "t1/*", "*"]
)
def test_a_reference_cannot_lead_out(home: Home, tmp_path: Path, reference: str) -> None:
    finish(home, "t1", "train", 1, "demo")
    for secret in (tmp_path / "secret", home.root / "secret"):
        finish(home, "x", "x", 1, root=secret)
    assert find_result(home, reference) is None


@pytest.mark.parametrize("stage", ["..", "../../secret", "*", "/etc"])
def test_a_stage_cannot_lead_out(home: Home, stage: str) -> None:
    finish(home, "t1", "train", 1)
    finish(home, "x", "x", 1, root=home.root / "secret")
    assert find_result(home, "t1", stage) is None
