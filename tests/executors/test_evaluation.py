"""Exact match of candidates against the reference in their items."""

from __future__ import annotations

from typing import Any

import pytest

from executors.base import ExecutorError, Result
from executors.host import execute
from tests.executors.conftest import MakeJob


def items(*outputs: str, references: tuple[str, ...] = ("A", "B", "C", "D")) -> list[dict[str, Any]]:
    return [{"index": i, "output": out, "metadata": {"reference": references[i]}} for i, out in enumerate(outputs)]


def evaluate(job: MakeJob, **evaluation: Any) -> Result:
    return execute(job("evaluation", {"evaluation": evaluation}, model=None))


def test_scores_rows_and_difference(job: MakeJob) -> None:
    result = evaluate(job, candidates={"base": items("A", "x", "x", "x"), "tuned": items("A", " B\n", "C", "x")})
    assert result.payload["metrics"] == {"exact_match": {"base": 0.25, "tuned": 0.75}}
    assert result.payload["difference"] == {"exact_match": {"tuned": 0.5}}
    assert result.payload["rows"][1] == {
        "index": 1,
        "reference": "B",
        "outputs": {"base": "x", "tuned": " B\n"},
        "correct": {"base": False, "tuned": True},
    }
    assert result.metrics["exact_match/tuned"] == 0.75


@pytest.mark.parametrize(
    ("evaluation", "fault"),
    [
        ({"candidates": {"a": items("A"), "b": items("A", "B")}}, "a has 1, b has 2"),
        ({"candidates": {"a": []}}, "no items"),
        ({"candidates": {"a": "text"}}, "not a list of items"),
        (
            {"candidates": {"a": items("A")}, "reference": "metadata.answer"},
            r"a\[0\] has no 'answer'; it has ref",
        ),
        ({"candidates": {"a": items("A")}, "baseline": "b"}, "'b', which is no candidate"),
        (
            {"candidates": {"a": items("A"), "b": items("A", references=("Z",))}},
            "Row 0 has reference 'A' in a and 'Z'",
        ),
    ],
)
def test_faults(job: MakeJob, evaluation: dict[str, Any], fault: str) -> None:
    with pytest.raises(ExecutorError, match=fault):
        evaluate(job, **evaluation)
