"""Results and files from elsewhere in the store: whole or not there, also after a kill, and never outside of it."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from mloc_dagster.store import received
from mloc_dagster.store.home import Home
from mloc_dagster.store.manifest import write_manifest
from mloc_dagster.store.received import Arriving, NotStored
from mloc_dagster.store.results import Envelope, write_envelope


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def envelope(task_id: str = "far-1/train", **result: object) -> Envelope:
    return Envelope(task_id=task_id, stage="train", worker="w", metadata={}, received_at="now", result=result)


def stored(home: Home) -> Path:
    assert received.receive(home, envelope())
    return home.run_folder("far-1", "train")


def send(folder: Path, name: str, data: bytes) -> received.Arrived:
    with Arriving(folder, name, 1 << 20, (len(data), len(data))) as arriving:
        arriving.write(data)
        return arriving.finish(None)


def entries(folder: Path) -> dict[str, dict[str, object]]:
    return {one["path"]: one for one in json.loads((folder / "manifest.json").read_text())["entries"]}


def test_what_a_kill_left_out_of_the_manifest_is_entered_by_the_retry(home: Home) -> None:
    folder = stored(home)
    send(folder, "a.bin", b"data")
    write_manifest(folder, "far-1/train", [])
    (folder / "artifacts" / "b.bin").write_bytes(b"more")  # linked, and then the service was killed
    half = folder / "artifacts" / ".c.bin.x.half"
    half.write_bytes(b"ha")
    wait_until_old(half)
    assert not send(folder, "b.bin", b"more").new
    assert entries(folder).keys() == {"responses.json", "artifacts", "artifacts/a.bin", "artifacts/b.bin"}
    assert not half.exists()
    (folder / "manifest.json").unlink()
    assert not received.receive(home, envelope()) and "responses.json" in entries(folder)


def wait_until_old(path: Path) -> None:
    while time.time() - path.stat().st_ctime < 5.0:
        time.sleep(0.1)


def test_uploads_at_once_are_all_in_the_manifest(home: Home) -> None:
    folder = stored(home)
    threads = [threading.Thread(target=send, args=(folder, f"{number}.bin", b"x" * number)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {f"artifacts/{number}.bin" for number in range(1, 9)} <= entries(folder).keys()


def test_results_at_once_one_wins(home: Home) -> None:
    told: list[bool | str] = []

    def give(number: int) -> None:
        try:
            told.append(received.receive(home, envelope(number=number)))
        except NotStored as error:
            told.append(error.kind)

    threads = [threading.Thread(target=give, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, told)) == ["True", *["taken"] * 7]


def test_an_upload_keeps_what_is_required_and_missing(home: Home) -> None:
    folder = stored(home)
    write_manifest(folder, "far-1/train", ["report.txt", "trained_model"])
    send(folder, "a.bin", b"data")
    found = entries(folder)
    assert (found["report.txt"]["status"], found["final_model"]["name"]) == ("missing", "trained_model")
    assert found["report.txt"]["required"] and found["responses.json"]["required"]


def test_an_upload_reads_no_other_file_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from mloc_dagster.store import manifest

    folder, read = stored(home), []
    send(folder, "a.bin", b"data")
    monkeypatch.setattr(manifest, "file_digest", lambda path: read.append(path.name) or "sha256:0")
    send(folder, "b.bin", b"data")
    assert read == ["b.bin"]


def test_a_digest_is_told_only_of_what_did_not_change_since(home: Home) -> None:
    folder = stored(home)
    assert received.file_of(home, "far-1", "train/responses.json")[1]  # pyright: ignore[reportOptionalSubscript]
    write_envelope(folder, envelope(verdict="another"))
    assert received.file_of(home, "far-1", "train/responses.json")[1] is None  # pyright: ignore
    assert all("sha256" not in one for one in received.files_of(home, "far-1")[0] if "responses" in one["name"])


def test_links_lead_nowhere_else(home: Home, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "responses.json").write_text("secret")
    folder = stored(home)
    (folder / "artifacts").symlink_to(elsewhere)
    with pytest.raises(NotStored, match="is a link"):
        send(folder, "a.bin", b"data")
    assert os.listdir(elsewhere) == ["responses.json"]
    (home.results / "far-2").mkdir()
    (home.results / "far-2" / "train").symlink_to(elsewhere)
    assert received.stages_of(home, "far-2") == []
    with pytest.raises(NotStored, match="leads elsewhere"):
        received.receive(home, envelope("far-2/train"))
    (folder / "responses.json").unlink()
    (folder / "responses.json").symlink_to(elsewhere / "responses.json")
    assert received.stages_of(home, "far-1") == []


@pytest.mark.parametrize("task_id", ["far 1/train", "far+1/train", "../train", "far/.train"])
def test_names_that_are_none(home: Home, task_id: str) -> None:
    with pytest.raises(NotStored, match="plain names"):
        received.receive(home, envelope(task_id))


def test_a_file_of_another_size_is_refused_before_it_comes(home: Home) -> None:
    folder = stored(home)
    send(folder, "a.bin", b"data")
    with pytest.raises(NotStored, match="another file"), Arriving(folder, "a.bin", 1 << 20, (7, 7)):
        pass
    assert os.listdir(folder / "artifacts") == ["a.bin"]
