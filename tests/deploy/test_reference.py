"""The reference pages are those that the code makes now, and they are complete."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mloc_dagster.spec import task_types
from mloc_dagster.spec.schema import json_schema
from tests.docker_engine import ROOT

DOCS = ROOT / "docs"


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mloc_dagster.docs", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)


def test_pages_are_up_to_date_and_old_ones_are_named(tmp_path: Path) -> None:
    done = run("--check", folder=ROOT)
    assert done.returncode == 0, done.stderr
    (tmp_path / "tasks.md").write_text("old")
    done = run("--check", str(tmp_path), folder=ROOT)
    assert done.returncode == 1 and "python -m mloc_dagster.docs" in done.stderr
    assert (tmp_path / "tasks.md").read_text() == "old" and not (tmp_path / "api.md").exists()


def test_every_key_and_task_type_is_there() -> None:
    text = (DOCS / "tasks.md").read_text("utf-8")
    for name, told in json_schema()["$defs"].items():
        for key in told.get("properties", ()):
            assert f"`{key}`" in text, f"{name}.{key}"
    assert [kind for kind in task_types.known() if f"| `{kind}` |" not in text] == []


@pytest.mark.parametrize("page", ["tasks.md", "api.md", "deploy.md", "runbook.md", "executors.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = (DOCS / page).read_text("utf-8")
    headings = {_anchor(line) for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("http"):
            assert (DOCS / target.partition("#")[0]).exists(), target


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


def test_rows_have_as_many_cells_as_their_head() -> None:
    for page in ("tasks.md", "api.md"):
        for block in re.findall(r"(?:^\|.*\n)+", (DOCS / page).read_text("utf-8"), re.MULTILINE):
            counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(counts) == 1, block[:300]
