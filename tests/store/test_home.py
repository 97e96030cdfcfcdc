"""Where state lies, and that a logical path never leads out of the results."""

from __future__ import annotations

from pathlib import Path

import pytest

from mloc_dagster.store.home import Home


def test_the_home_is_the_environments_else_beside_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLOC_HOME", raising=False)
    assert Home.current().root == tmp_path.resolve() / ".mloc"
    monkeypatch.setenv("MLOC_HOME", "elsewhere")
    assert Home.current().run_folder("t1", "train") == tmp_path.resolve() / "elsewhere" / "results" / "t1" / "train"


@pytest.mark.parametrize(
    ("logical", "inside"),
    [
        ("x", "x"),
        ("./x", "x"),
        ("/x", "x"),
        ("/ignored/x", "x"),
        ("/mnt/x", "x"),
        ("/shared/x/y/", "x/y"),
        ("/artifacts/./x", "x"),
        ("//etc/x", "etc/x"),
        ("\\\\host\\x", "host/x"),
        ("mnt/x", "mnt/x"),
        ("/mnt", "mnt"),
        ("..x", "..x"),
    ],
)
def test_a_logical_path_lands_inside_the_results(tmp_path: Path, logical: str, inside: str) -> None:
    home = Home(tmp_path)
    assert home.resolve_inside(logical) == home.results / inside


@pytest.mark.parametrize("logical", ["..", "../x", "x/../../y", "/mnt/../../etc", "x\\..\\..\\y", "", "/", ".", "a\0b"])
def test_a_path_that_leads_out_or_nowhere_is_refused(tmp_path: Path, logical: str) -> None:
    with pytest.raises(ValueError, match=r"leaves the results folder; remove|names no folder; write"):
        Home(tmp_path).resolve_inside(logical)
