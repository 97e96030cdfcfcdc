"""Entries are whole or not there, whoever is killed when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mloc_dagster.sources import Cache, PullError
from mloc_dagster.sources.cache import Fill

ROOT = Path(__file__).parents[2]
DIE = """
import os, signal, sys
from pathlib import Path
from mloc_dagster.sources import cache
from mloc_dagster.store.digests import Digests

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def fill(folder):
    (folder / "first").write_text("1")
    if sys.argv[2] == "filling":
        die()
    (folder / "second").write_text("2")
    return "r1"

if sys.argv[2] == "digesting":
    Digests.of = die
if sys.argv[2] == "recording":
    cache.write_json = die
cache.Cache(Path(sys.argv[1])).fetch("key", fill)
"""


def write(content: str, made: list[str]) -> Fill:
    def fill(folder: Path) -> str:
        made.extend(sorted(path.name for path in folder.iterdir()) or ["nothing"])
        (folder / "file").write_text(content)
        return "r1"

    return fill


def test_an_entry_is_made_once(cache: Cache) -> None:
    made: list[str] = []
    first = cache.fetch("key", write("content", made))
    second = cache.fetch("key", write("content", made))
    assert (first.from_cache, second.from_cache, made) == (False, True, ["nothing"])
    assert (second.path, second.digest, second.size, second.revision) == (first.path, first.digest, 7, "r1")


def test_keys_that_look_alike_have_entries_of_their_own(cache: Cache) -> None:
    assert cache.fetch("a/b", write("1", [])).path != cache.fetch("a-b", write("2", [])).path


def test_a_key_with_a_password_is_not_written(cache: Cache) -> None:
    cache.fetch("https://me:hunter2@host/file?token=hunter3", write("1", []))
    assert not [path for path in cache.root.rglob("*") if "hunter" in path.name or "hunter" in _text(path)]


@pytest.mark.parametrize("damage", ["shorter", "fewer", "no record", "broken record"])
def test_a_damaged_entry_is_made_again(cache: Cache, damage: str) -> None:
    entry = cache.fetch("key", write("content", []))
    record = entry.path.with_name(entry.path.name + ".json")
    if damage == "shorter":
        (entry.path / "file").write_text("con")
    if damage == "fewer":
        (entry.path / "file").unlink()
    if damage == "no record":
        record.unlink()
    if damage == "broken record":
        record.write_text('{"size": 7')
    assert cache.look("key") is None
    again = cache.fetch("key", write("content", []))
    assert not again.from_cache and again.digest == entry.digest and (again.path / "file").read_text() == "content"


@pytest.mark.parametrize("when", ["filling", "digesting", "recording"])
def test_a_killed_pull_is_continued(cache: Cache, when: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", DIE, str(cache.root), when], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert cache.look("key") is None
    found: list[str] = []

    def fill(folder: Path) -> str:
        found.extend(sorted(path.name for path in folder.iterdir()))
        (folder / "second").write_text("2")
        return "r1"

    entry = cache.fetch("key", fill)
    assert sorted(path.name for path in entry.path.iterdir()) == ["first", "second"]
    assert found == {"filling": ["first"], "digesting": [], "recording": ["first", "second"]}[when]
    assert entry.revision == "r1" and cache.look("key") is not None


def test_a_fault_leaves_no_entry_and_keeps_what_came(cache: Cache) -> None:
    def fill(folder: Path) -> str:
        (folder / "first").write_text("1")
        raise PullError("no network")

    with pytest.raises(PullError, match="no network"):
        cache.fetch("key", fill)
    assert cache.look("key") is None
    made: list[str] = []
    cache.fetch("key", write("content", made))
    assert made == ["first"]


def test_a_full_disk_is_said_without_a_traceback(cache: Cache) -> None:
    def fill(folder: Path) -> str:
        raise OSError(28, "No space left on device")

    with pytest.raises(PullError, match=r"cannot be written: .*No space left on device; make room"):
        cache.fetch("key", fill)


def test_threads_that_want_the_same_wait_for_the_first(cache: Cache) -> None:
    made: list[str] = []
    inside, go = threading.Event(), threading.Event()

    def fill(folder: Path) -> str | None:
        made.append("once")
        inside.set()
        go.wait(10)
        return write("content", [])(folder)

    entries: list[bool] = []
    threads = [threading.Thread(target=lambda: entries.append(cache.fetch("key", fill).from_cache)) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert inside.wait(10)
    assert cache.look("key") is None
    go.set()
    for thread in threads:
        thread.join(10)
    assert made == ["once"] and sorted(entries) == [False, True, True, True]


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
