"""Delivery to a folder inside the results."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mloc_dagster.delivery import DeliveryError, deliver
from mloc_dagster.spec.output import Destination
from mloc_dagster.store.home import Home
from tests.delivery.conftest import finished, tree


def to(path: str | None) -> Destination:
    return Destination(type="local", path=path, retries=0)


@pytest.mark.parametrize("path", ["out/best", "./out/best", "/mnt/out/best", "/shared/out/best"])
def test_every_path_is_one_inside_the_results(folder: Path, home: Home, path: str) -> None:
    place = home.results / "out" / "best"
    assert deliver(folder, to(path), home, "t") == {"delivered_to": str(place)}
    assert tree(place) == tree(folder)


def test_twice_gives_the_same_and_a_new_result_replaces_all_of_the_old_one(folder: Path, home: Home) -> None:
    for _ in range(2):
        deliver(folder, to("out"), home, "t")
    assert tree(home.results / "out") == tree(folder)
    (folder / "extra.txt").write_text("only in the first")
    deliver(folder, to("out"), home, "t")
    newer = finished(home, "loss 2", task="1a2b")
    deliver(newer, to("out"), home, "t")
    assert tree(home.results / "out") == tree(newer)
    assert sorted(path.name for path in home.results.iterdir()) == ["0f3c", "1a2b", "out"]


def test_without_a_path_the_result_stays_where_it_is(folder: Path, home: Home) -> None:
    before = tree(home.results)
    assert deliver(folder, to(None), home, "t") == {"delivered_to": str(folder)}
    assert tree(home.results) == before


def test_a_delivery_that_breaks_off_leaves_the_old_one(
    folder: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(folder, to("out"), home, "t")
    before = tree(home.results / "out")
    newer = finished(home, "loss 2", task="1a2b")
    with monkeypatch.context() as patched:
        patched.setattr(os, "link", _fails_at("manifest.json"))
        patched.setattr(shutil, "copy2", _fails_at("manifest.json"))
        with pytest.raises(DeliveryError, match="no space left") as told:
            deliver(newer, to("out"), home, "t")
    assert f"The result is kept in {newer}" in str(told.value)
    assert tree(home.results / "out") == before
    deliver(newer, to("out"), home, "t")
    assert tree(home.results / "out") == tree(newer)


def test_a_kill_between_the_two_renames_loses_nothing(folder: Path, home: Home) -> None:
    deliver(folder, to("out"), home, "t")
    out = home.results / "out"
    before = tree(out)
    out.rename(home.results / ".out.old")  # what a kill after the first rename leaves
    (home.results / ".out.new").mkdir()
    newer = finished(home, "loss 2", task="1a2b")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "link", _fails_at("responses.json"))
        patched.setattr(shutil, "copy2", _fails_at("responses.json"))
        with pytest.raises(DeliveryError):
            deliver(newer, to("out"), home, "t")
    assert tree(out) == before
    deliver(newer, to("out"), home, "t")
    assert tree(out) == tree(newer) and not list(home.results.glob(".out*"))


def _other_task(results: Path) -> None:
    finished(Home(results.parent), "other", task="1a2b", stage="s")


def _file(results: Path) -> None:
    (results / "file").write_text("mine")


@pytest.mark.parametrize(
    ("prepare", "path", "why"),
    [
        (_other_task, "1a2b/s", "is where the result of another task lies"),
        (_other_task, "1a2b/s/in", "which is a result"),
        (_other_task, "1a2b", "holds other files"),
        (_file, "file", "is a file"),
        (_file, "file/below", "which is a file"),
        (_file, "../out", "leaves the results folder"),
    ],
)
def test_what_would_be_lost_is_refused(
    folder: Path, home: Home, prepare: Callable[[Path], None], path: str, why: str
) -> None:
    prepare(home.results)
    before = tree(home.results)
    with pytest.raises(DeliveryError, match=why):
        deliver(folder, to(path), home, "t")
    assert tree(home.results) == before


def _fails_at(name: str) -> Callable[..., None]:
    def link(source: str, target: str, **_: object) -> None:
        if target.endswith(name):
            raise OSError(28, "no space left")
        Path(target).write_bytes(Path(source).read_bytes())

    return link
