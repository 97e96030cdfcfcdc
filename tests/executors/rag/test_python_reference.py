"""The shipped questions about Python's language reference: they are found, and answered better with what is found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mirror import TASK_SPECS
from tests.task_specs.test_runs import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
QUESTIONS = TASK_SPECS / "quickstart" / "python_questions.yaml"
ANSWERS = TASK_SPECS / "experiments" / "answers_with_context.yaml"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of one home, so that the index is made once."""
    home = tmp_path_factory.mktemp("reference") / "home"
    return {**os.environ, "MLOC_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def test_questions_find_their_topic(deployment: dict[str, str], tmp_path: Path) -> None:
    stages = run(QUESTIONS, deployment, tmp_path, timeout=840)["stages"]
    assert len(stages["search"]["result"]["queries"]) >= 16
    assert stages["search"]["result"]["metrics"]["hit@5"] >= 0.85
    assert stages["index"]["result"]["chunks"] > 500


def test_an_index_of_the_same_documents_is_not_made_again(deployment: dict[str, str], tmp_path: Path) -> None:
    report = run(QUESTIONS, deployment, tmp_path, timeout=840)
    assert {name: bool(stage["metadata"].get("reused_from")) for name, stage in report["stages"].items()} == {
        "index": True, "search": True
    }  # fmt: skip


@pytest.mark.exhaustive
def test_answers_are_better_with_what_was_found(deployment: dict[str, str], tmp_path: Path) -> None:
    stages = run(ANSWERS, deployment, tmp_path, timeout=840)["stages"]
    assert stages["index"]["metadata"]["reused_from"]
    scores = stages["compare"]["result"]["metrics"]["contains"]
    assert scores["with_context"] >= scores["without"] + 0.1
