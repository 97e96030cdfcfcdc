"""A manifest says what a run folder holds, and what was asked for but is not there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mloc_dagster.spec.base import Json
from mloc_dagster.store.manifest import write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished LoRA training."""
    run = tmp_path / "t1" / "train"
    lora = ("final_lora/adapter.safetensors", "final_lora/config.json", "artifacts/final_lora.tar.gz")
    for name in ("logs/stdout.log", *lora):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("12345")
    (run / "responses.json").write_text("{}")
    (run / "answers.jsonl").write_text("{}\n")
    return run


def entries(folder: Path, *declared: str) -> dict[str, dict[str, Json]]:
    return {entry["name"]: entry for entry in write_manifest(folder, "t1/train", list(declared))["entries"]}


def test_what_is_there_is_listed_with_size_and_digest(folder: Path) -> None:
    found = entries(folder)
    assert set(found) == {
        "responses.json", "logs", "artifacts", "final_lora", "answers.jsonl", "artifacts/final_lora.tar.gz"
    }  # fmt: skip
    assert found["answers.jsonl"] == {
        "name": "answers.jsonl", "path": "answers.jsonl", "type": "file", "required": False, "status": "present",
        "size": 3, "sha256": hashlib.sha256(b"{}\n").hexdigest(),
    }  # fmt: skip
    assert found["final_lora"] == {
        "name": "final_lora", "path": "final_lora", "type": "folder", "required": False, "status": "present",
        "size": 10, "file_count": 2,
    }  # fmt: skip
    assert found["responses.json"]["required"]


def test_the_file_is_what_was_returned_and_does_not_list_itself(folder: Path) -> None:
    write_manifest(folder, "t1/train", [])
    again = write_manifest(folder, "t1/train", [])
    assert json.loads((folder / "manifest.json").read_text("utf-8")) == again
    assert set(again) == {"task_id", "generated_at", "entries"}
    assert again["task_id"] == "t1/train"
    assert "manifest.json" not in {entry["name"] for entry in again["entries"]}


@pytest.mark.parametrize(
    ("name", "path", "status"),
    [
        ("trained_model", "final_lora", "present"),
        ("adapter_weights", "final_lora", "present"),
        ("training_logs", "logs", "present"),
        ("full_model", "final_model", "missing"),
        ("final_model/", "final_model", "missing"),
        ("checkpoints", "checkpoints", "missing"),
    ],
)
def test_an_alias_maps_to_the_folder_that_is_there(folder: Path, name: str, path: str, status: str) -> None:
    entry = entries(folder, name)[name]
    assert (entry["path"], entry["status"], entry["type"], entry["required"]) == (path, status, "folder", True)


def test_a_full_model_is_the_trained_model_when_there_are_both(folder: Path) -> None:
    (folder / "final_model").mkdir()
    assert entries(folder, "trained_model")["trained_model"]["path"] == "final_model"


def test_a_declared_file_that_is_missing_is_said(folder: Path) -> None:
    assert entries(folder, "scores.csv")["scores.csv"] == {
        "name": "scores.csv", "path": "scores.csv", "type": "file", "required": True, "status": "missing"
    }  # fmt: skip


def test_a_declared_file_is_listed_once(folder: Path) -> None:
    names = [entry["name"] for entry in write_manifest(folder, "t", ["answers.jsonl", "answers.jsonl"])["entries"]]
    assert names.count("answers.jsonl") == 1


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "logs/../../secret", ""])
def test_nothing_outside_is_read(folder: Path, name: str) -> None:
    (folder.parent / "secret").write_text("s")
    entry = entries(folder, name)[name]
    assert entry["status"] == "missing"
    assert "sha256" not in entry


def test_a_link_that_leads_out_is_missing(folder: Path) -> None:
    (folder.parent / "secret").write_text("s")
    (folder / "link").symlink_to(folder.parent / "secret")
    assert entries(folder, "link")["link"]["status"] == "missing"
