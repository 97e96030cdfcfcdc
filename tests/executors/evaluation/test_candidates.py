"""Items of earlier stages against references, rewards and preferences."""

from __future__ import annotations

import json
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


def test_words_in_common_beside_exact_match(job: MakeJob) -> None:
    candidates = {"base": items("x", "B"), "tuned": items("A a", "B")}
    result = evaluate(job, candidates=candidates, metrics=["exact_match", "f1", "rouge_l"])
    assert result.payload["metrics"]["rouge_l"] == {"base": 0.5, "tuned": pytest.approx(5 / 6)}
    assert result.payload["difference"]["rouge_l"] == {"tuned": pytest.approx(1 / 3)}
    row = result.payload["rows"][0]
    assert row["correct"] == {"base": False, "tuned": False}
    assert row["scores"]["rouge_l"] == {"base": 0.0, "tuned": pytest.approx(2 / 3)}
    assert result.metrics["f1/base"] == 0.5


def test_the_best_of_several_right_answers_counts(job: MakeJob) -> None:
    one = [{"output": "B", "metadata": {"reference": ["A", "B"]}}]
    result = evaluate(job, candidates={"a": one})
    assert result.payload["metrics"] == {"exact_match": {"a": 1.0}}
    assert result.payload["rows"][0]["reference"] == ["A", "B"]


def test_preferences_win_rows(job: MakeJob) -> None:
    preferred = ["new", "new", "old", "tie"]
    new = [{"output": "x", "metadata": {"liked": name}} for name in preferred]
    old = [{"output": "y"} for _ in preferred]
    result = evaluate(
        job, candidates={"old": old, "new": new}, metrics=["win_rate"], preference="metadata.liked", baseline="old"
    )
    assert result.payload["metrics"] == {"win_rate": {"new": 0.625}}
    new[2]["metadata"] = {"liked": "neither"}
    with pytest.raises(ExecutorError, match=r"new\[2\] prefers 'neither'"):
        evaluate(job, candidates={"old": old, "new": new}, metrics=["win_rate"], preference="metadata.liked")


def rewarded(job: MakeJob, candidates: dict[str, Any], *metrics: str) -> Result:
    """Score with the built-in reward that counts words of a good or bad mood."""
    spec = {"evaluation": {"candidates": candidates, "metrics": list(metrics)}, "reward_model": {"type": "sentiment"}}
    return execute(job("evaluation", spec, model=None))


def test_rewards_of_candidates(job: MakeJob) -> None:
    good = [{"prompt": "p", "output": "a wonderful day"}, {"prompt": "q", "output": "good"}]
    bad = [{"prompt": "p", "output": "a terrible day"}, {"prompt": "q", "output": "good"}]
    result = rewarded(job, {"bad": bad, "good": good}, "reward", "win_rate")
    metrics = result.payload["metrics"]
    assert metrics["reward"]["good"] > metrics["reward"]["bad"]
    assert metrics["win_rate"] == {"good": 0.75}
    assert result.payload["difference"].keys() == {"reward"}
    with pytest.raises(ExecutorError, match=r"good\[0\] has no prompt"):
        rewarded(job, {"good": [{"output": "x"}]}, "reward")
    with pytest.raises(ExecutorError, match="Row 1 has prompt 'q' in bad and 'r' in good"):
        rewarded(job, {"bad": bad, "good": [good[0], {"prompt": "r", "output": "x"}]}, "reward")


def test_all_rows_are_in_a_file_and_the_first_in_the_result(job: MakeJob) -> None:
    many = [{"output": str(row), "metadata": {"reference": "7"}} for row in range(1200)]
    given = job("evaluation", {"evaluation": {"candidates": {"a": many}}}, model=None)
    result = execute(given).payload
    assert (len(result["rows"]), result["rows_total"]) == (1000, 1200)
    lines = (given.out / "rows.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 1200 and json.loads(lines[7])["correct"] == {"a": True}
    assert result["rows_path"] == str(given.out / "rows.jsonl")


def test_the_digest_of_the_rows_tells_questions_and_answers_not_outputs(job: MakeJob) -> None:
    def digest(output: str, reference: str) -> object:
        return evaluate(job, candidates={"a": items(output, references=(reference,))}).metadata["rows_digest"]

    assert digest("x", "A") == digest("y", "A") != digest("x", "B")
