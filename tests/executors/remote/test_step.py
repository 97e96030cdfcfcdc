"""What an attempt does before and around its work: another version, a store that is away, state that is lost."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from executors.remote import __main__ as program
from executors.remote.document import RemoteJob, RemoteResult, State
from executors.remote.step import Step, read_job
from executors.remote.store import Store, StoreError, Unusable
from mloc_dagster import __version__

KEY = "jobs/w/t/a1"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"file://{tmp_path}/store")


def put(tmp_path: Path, document: dict[str, Any]) -> None:
    folder = tmp_path / "store" / KEY
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(document))


def test_an_image_of_another_version_says_so(store: Store, tmp_path: Path) -> None:
    put(tmp_path, {"version": "0.0.9", "what": "nobody knows"})
    command = [sys.executable, "-m", "executors.remote", store.url, KEY]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    result = store.read(f"{KEY}/result.json", RemoteResult)
    assert result is not None and result.error is not None
    assert result.error["kind"] == "user"
    assert result.error["message"] == f"the image has MLOC {__version__}, the control plane 0.0.9"


def test_a_document_that_is_none_of_ours_is_told(store: Store, tmp_path: Path) -> None:
    put(tmp_path, {"version": __version__, "what": "nobody knows"})
    with pytest.raises(Unusable, match=r"jobs/w/t/a1/job.json is not as this version of MLOC writes it"):
        read_job(store, KEY)


def test_a_store_that_does_not_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "_OPEN_SECONDS", 0.5)
    monkeypatch.setattr(program, "_BEAT_SECONDS", 0.1)
    monkeypatch.setattr(program, "Store", lambda url: time.sleep(5))
    assert program.main(["s3://far/away", KEY]) == 1
    said = capfd.readouterr()
    assert "the artifact store s3://far/away does not answer within 0.5 s" in said.err
    assert said.out.count('"beat"') > 2


def step_of(store: Store, tmp_path: Path) -> Step:
    job = {"task_id": "t/s", "task_name": "t", "stage": "s", "raw": {"taskType": "echo"}, "out": "/o", "upstream": {}}
    told = {"version": __version__, "work": "w", "job": job, "grace": 1, "sync": 60}
    return Step(store, KEY, RemoteJob.model_validate(told), tmp_path / "root", tmp_path / "inputs")


def test_state_of_which_a_part_is_lost_costs_the_state_alone(
    store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    store.write("jobs/w/state.json", State(out=store.push({name: tmp_path / name for name in ("a", "b")})))
    for blob in (tmp_path / "store" / "blobs").rglob("*"):
        if blob.is_file() and blob.read_text() == "b":
            blob.unlink()
    step = step_of(store, tmp_path)
    out = tmp_path / "root" / "work" / "w"
    out.mkdir(parents=True)
    step._restore()
    assert list(out.iterdir()) == [], "nothing of it, rather than a part"
    assert "begins anew" in capfd.readouterr().out


def test_a_machine_without_room_is_told(store: Store, tmp_path: Path) -> None:
    (tmp_path / "root").write_text("a file where a folder is to be")
    result = step_of(store, tmp_path).run()
    assert result.error is not None and result.error["kind"] == "internal"
    assert "could not be set up or put away on its machine" in result.error["message"]


def test_a_missing_document_is_told(store: Store) -> None:
    with pytest.raises(StoreError, match="Is it the control plane's store"):
        read_job(store, KEY)
