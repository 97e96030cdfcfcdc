"""A finished stage is reused only while its result is what it was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mloc_dagster.store.home import Home
from mloc_dagster.store.manifest import write_manifest
from mloc_dagster.store.results import Envelope, write_envelope
from mloc_dagster.store.reuse import Entry, ReuseIndex


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def finish(home: Home, task_id: str = "t1") -> Entry:
    """Write a whole run folder, and return its entry."""
    folder = home.run_folder(task_id, "train")
    (folder / "final_model").mkdir(parents=True)
    (folder / "final_model" / "weights").write_text("12345")
    (folder / "answers.jsonl").write_text("{}\n")
    envelope = Envelope(task_id=task_id, stage="train", worker="w", metadata={}, received_at="now", result={"ok": True})
    write_envelope(folder, envelope)
    write_manifest(folder, task_id, ["trained_model", "absent"])
    digest = hashlib.sha256((folder / "responses.json").read_bytes()).hexdigest()
    return Entry(task_id=task_id, stage="train", folder=folder, artifact_digest=digest, finished_at="now")


def test_a_whole_result_is_found(home: Home) -> None:
    entry = finish(home)
    ReuseIndex(home).record("abc", entry)
    assert ReuseIndex(home).lookup("abc") == entry
    assert ReuseIndex(home).lookup("other") is None


def truncate(folder: Path) -> None:
    (folder / "final_model" / "weights").write_text("123")


def edit(folder: Path) -> None:
    (folder / "responses.json").write_text((folder / "responses.json").read_text("utf-8").replace("true", "null"))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "result edited": edit,
    "result gone": lambda folder: (folder / "responses.json").unlink(),
    "file gone": lambda folder: (folder / "answers.jsonl").unlink(),
    "file shorter": lambda folder: (folder / "answers.jsonl").write_text("{"),
    "weights gone": lambda folder: (folder / "final_model" / "weights").unlink(),
    "weights cut off": truncate,
    "folder gone": lambda folder: folder.rename(folder.with_name("moved")),
    "manifest gone": lambda folder: (folder / "manifest.json").unlink(),
    "manifest cut off": lambda folder: (folder / "manifest.json").write_text('{"entries": ['),
    "manifest of another kind": lambda folder: (folder / "manifest.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_result_is_not_reused(home: Home, damage: str) -> None:
    entry = finish(home)
    ReuseIndex(home).record("abc", entry)
    DAMAGE[damage](entry.folder)
    assert ReuseIndex(home).lookup("abc") is None


def test_a_spoilt_entry_is_none_and_can_be_written_again(home: Home) -> None:
    index, entry = ReuseIndex(home), finish(home)
    index.record("abc", entry)
    for file in (home.index / "stages").iterdir():
        file.write_text('{"task_id": 1')
    assert index.lookup("abc") is None
    index.record("abc", entry)
    assert index.lookup("abc") == entry


def test_writers_that_race_leave_one_whole_entry(home: Home) -> None:
    entries = [finish(home, f"t{number}") for number in range(4)]
    index = ReuseIndex(home)

    def write(entry: Entry) -> None:
        for _ in range(10):
            index.record("abc", entry)
            assert index.lookup("abc") in entries

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, entries))
