"""What the README says works as it stands there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")


def blocks(file: Path) -> list[tuple[str, str]]:
    return [(match[1], match[2]) for match in _BLOCK.finditer(file.read_text("utf-8"))]


def test_both_languages_give_the_same_commands() -> None:
    def commands(file: Path) -> list[str]:
        return [line for kind, text in blocks(file) if kind == "bash" for line in text.splitlines()]

    assert commands(ENGLISH) == commands(CHINESE)
    assert {"make demo", "make test"} <= set(commands(ENGLISH))


@pytest.mark.parametrize("file", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_links_lead_somewhere(file: Path) -> None:
    missing = [link for link in _LINK.findall(file.read_text("utf-8")) if not (ROOT / link).exists()]
    assert missing == []


def test_every_task_file_of_the_quickstart_and_the_templates_is_named() -> None:
    text = ENGLISH.read_text("utf-8")
    files = [*(ROOT / "task_specs" / "quickstart").glob("*.yaml"), *(ROOT / "task_specs" / "templates").glob("*.yaml")]
    assert [str(f.relative_to(ROOT)) for f in files if f"({f.relative_to(ROOT)})" not in text] == []


@pytest.mark.slow
@pytest.mark.parametrize("file", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_the_first_task(file: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each command of the section, in its order, on the file of the section."""
    (yaml,) = [text for kind, text in blocks(file) if kind == "yaml"]
    (tmp_path / "my_task.yaml").write_text(yaml, "utf-8")
    home = tmp_path_factory.getbasetemp() / "readme-home"  # both languages: the second run reuses the first
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "MLOC_HOME": str(home), "OMP_NUM_THREADS": "1"}
    lines = next(text for kind, text in blocks(file) if kind == "bash" and "mloc run" in text).splitlines()
    for line in (line for line in lines if not line.startswith("source ")):
        done = subprocess.run(line.split(), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    (answers, *_) = sorted(home.glob("results/*/*/responses.json"))
    items = json.loads(answers.read_text("utf-8"))["result"]["items"]
    assert [bool(item["output"].strip()) for item in items] == [True, True]
