"""A reader never sees half a file, whoever is killed when."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mloc_dagster.files.atomic import write_json, write_text

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
