"""Digests tell content apart, and a large file is read once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from mloc_dagster.store import digests
from mloc_dagster.store.digests import Digests, file_digest
from mloc_dagster.store.home import Home

LARGE = b"0" * (2 << 20)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.root.mkdir()
    return home


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were really read."""
    names: list[str] = []

    def read(path: Path) -> str:
        names.append(path.name)
        return file_digest(path)

    monkeypatch.setattr(digests, "file_digest", read)
    return names


def tree(root: Path, **files: bytes) -> Path:
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def test_a_file_has_the_digest_of_its_bytes(tmp_path: Path, home: Home) -> None:
    file = tree(tmp_path / "a", x=LARGE + b"end") / "x"
    expected = f"sha256:{hashlib.sha256(LARGE + b'end').hexdigest()}"
    assert file_digest(file) == Digests(home).of(file) == expected


def test_a_folder_has_the_digest_of_its_names_and_contents_wherever_it_is(tmp_path: Path, home: Home) -> None:
    of = Digests(home).of
    here = of(tree(tmp_path / "here", x=b"1", sub__y=b"2"))
    assert of(tree(tmp_path / "there", sub__y=b"2", x=b"1")) == here
    others = [{"x": b"2", "sub__y": b"1"}, {"x": b"1", "y": b"2"}, {"x": b"1"}, {"x": b"1", "sub__y": b"2", "z": b""}]
    assert here not in {of(tree(tmp_path / f"other{index}", **files)) for index, files in enumerate(others)}


def test_a_large_file_is_read_once_also_by_another_process(tmp_path: Path, home: Home, reads: list[str]) -> None:
    folder = tree(tmp_path / "model", weights=LARGE, config=b"{}")
    first = Digests(home).of(folder)
    reads.clear()
    assert Digests(home).of(folder) == first
    assert "weights" not in reads


@pytest.mark.parametrize("change", ["content", "size", "replaced"])
def test_a_large_file_that_changed_is_read_again(tmp_path: Path, home: Home, change: str) -> None:
    file = tree(tmp_path / "model", weights=LARGE) / "weights"
    first, stat = Digests(home).of(file), file.stat()
    if change == "content":
        file.write_bytes(b"1" * len(LARGE))
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    elif change == "size":
        file.write_bytes(LARGE + b"1")
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    else:
        aside = tree(tmp_path / "aside", weights=b"1" * len(LARGE)) / "weights"
        os.utime(aside, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        aside.replace(file)
    assert Digests(home).of(file) == file_digest(file) != first


def test_a_spoilt_memo_is_not_believed(tmp_path: Path, home: Home) -> None:
    file = tree(tmp_path / "model", weights=LARGE) / "weights"
    first = Digests(home).of(file)
    memos = list((home.index / "files").iterdir())
    assert memos
    for memo in memos:
        memo.write_text('{"state"')
    assert Digests(home).of(file) == first


def test_without_a_home_nothing_is_written(tmp_path: Path) -> None:
    home = Home(tmp_path / "none")
    Digests(home).of(tree(tmp_path / "model", weights=LARGE))
    assert not home.root.exists()
