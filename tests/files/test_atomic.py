"""A reader never sees half a file, whoever is killed when."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mloc_dagster.files.atomic import HALF, half_file, half_folder, sweep, write_json, write_text

ROOT = Path(__file__).parents[2]
DIE = """
import os, signal, sys
from pathlib import Path
from mloc_dagster.files import atomic

setattr(atomic.os, sys.argv[2], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
atomic.write_text(Path(sys.argv[1]), "new" * 100_000)
"""


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file.json"
    write_json(file, {"text": "größer 大"})
    write_json(file, {"text": "anders"})
    assert json.loads(file.read_text("utf-8")) == {"text": "anders"}
    assert os.listdir(file.parent) == ["file.json"]


@pytest.mark.parametrize("when", ["fsync", "replace"])
def test_a_killed_writer_leaves_the_old_file(tmp_path: Path, when: str) -> None:
    file = tmp_path / "file"
    write_text(file, "old")
    ended = subprocess.run([sys.executable, "-c", DIE, str(file), when], cwd=ROOT, check=False)
    assert ended.returncode == -9
    assert file.read_text("utf-8") == "old"
    write_text(file, "newer")
    assert file.read_text("utf-8") == "newer"


def test_what_a_killed_writer_left_is_swept_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    killed, held = tmp_path / "deep" / "killed", tmp_path / "deep" / "held"
    subprocess.run([sys.executable, "-c", DIE, str(killed), "replace"], cwd=ROOT, check=False)
    [left] = killed.parent.iterdir()
    handle, name = half_file(held)
    with half_folder(tmp_path, "folder") as folder, os.fdopen(handle, "w"):
        (folder / "part").write_text("half")
        assert sweep(tmp_path) == [], "a writer may just have made it"
        assert sweep(tmp_path, least_age=0) == [left] and Path(name).exists() and folder.is_dir()
    assert sweep(tmp_path, least_age=0) == [Path(name)] and os.listdir(tmp_path) == ["deep"]


def test_files_that_only_look_alike_are_not_swept(tmp_path: Path) -> None:
    for name in (f"kept{HALF}", ".kept", ".half.way"):
        (tmp_path / name).write_text("mine")
    (tmp_path / f".link{HALF}").symlink_to(tmp_path / ".kept")
    assert sweep(tmp_path, least_age=0) == [] and len(os.listdir(tmp_path)) == 4


def test_a_fault_leaves_nothing_beside_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_text(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "\ud800")
    assert (file.read_text("utf-8"), os.listdir(tmp_path)) == ("old", ["file"])


def test_readers_see_whole_files_while_writers_race(tmp_path: Path) -> None:
    file, texts = tmp_path / "file", ["a" * 300_000, "b" * 300_000]
    write_text(file, texts[0])
    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(lambda text=text: [write_text(file, text) for _ in range(20)]) for text in texts]
        reads = 0
        while reads < 200 or not all(writer.done() for writer in writers):
            assert file.read_text("utf-8") in texts
            reads += 1
    assert os.listdir(tmp_path) == ["file"]
