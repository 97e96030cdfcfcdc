"""Rows for reward, dpo and grpo: shapes, and faults that name row and field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from executors.base import ExecutorError
from executors.rows import Asked, Preference, asked, preferences, training_rows
from executors.training.preferences import as_pairs
from executors.training.reward_functions import reward_function
from tests.executors.conftest import write_jsonl
from tests.executors.context_of import context_of

PAIRS = [{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(20)]
USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "g"), ("assistant", "b"))
)


def found(folder: Path, data: dict[str, Any]) -> list[Preference]:
    return preferences(training_rows(context_of(folder / "out", {"data": data})))


def prompts(folder: Path, data: dict[str, Any]) -> list[Asked]:
    return asked(training_rows(context_of(folder / "out", {"data": data})))


def test_inline_jsonl_and_named_columns_are_one_path(tmp_path: Path) -> None:
    wanted = [Preference("p0", "c0", "r0")]
    assert found(tmp_path, {"preferences": PAIRS[:1]}) == wanted
    assert found(tmp_path, {"prompts": PAIRS[:1]}) == wanted
    path = write_jsonl(tmp_path / "t.jsonl", [{"q": "p0", "good": "c0", "bad": "r0"}])
    fields = {"prompt_field": "q", "chosen_field": "good", "rejected_field": "bad"}
    assert found(tmp_path, {"jsonl": {"path": str(path)} | fields}) == wanted
    columns = {"prompt_column": "q", "chosen_column": "good", "rejected_column": "bad"}
    assert found(tmp_path, {"jsonl": {"path": str(path)}} | columns) == wanted


def test_answers_that_repeat_the_prompt_lose_it(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]}]
    assert found(tmp_path, {"prompts": rows}) == [Preference([USER], [GOOD], [BAD])]


def test_pairs_without_a_prompt(tmp_path: Path) -> None:
    assert found(tmp_path, {"prompts": [{"chosen": "a b", "rejected": "a c"}]}) == [Preference(None, "a b", "a c")]


@pytest.mark.parametrize(
    ("chat", "record"),
    [
        (False, {"prompt": "p0", "chosen": "|c0", "rejected": "|r0"}),
        (True, {"prompt": [{"role": "user", "content": "p0"}], "chosen": [{"role": "assistant", "content": "c0"}],
                "rejected": [{"role": "assistant", "content": "r0"}]}),
    ],
)  # fmt: skip
def test_formats(tmp_path: Path, chat: bool, record: dict[str, Any]) -> None:
    rows = training_rows(context_of(tmp_path, {"data": {"preferences": PAIRS[:1], "separator": "|"}}))
    assert as_pairs(rows, has_chat_template=chat)[0][0] == record


def test_some_equal_pairs_are_told(tmp_path: Path) -> None:
    rows = [*PAIRS[:3], {"prompt": "p", "chosen": "x", "rejected": "x"}]
    _, warnings = as_pairs(training_rows(context_of(tmp_path, {"data": {"prompts": rows}})), has_chat_template=False)
    assert warnings == ["data.prompts: chosen equals rejected in 1 of 4 rows (first: row 3); they teach nothing"]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({}, "no training rows"),
        ({"prompts": []}, "0 rows"),
        ({"prompts": [{"prompt": "a", "chosen": "b"}]}, "rejected_column is 'rejected', but data.prompts has no"),
        ({"prompts": PAIRS, "chosen_column": "better"}, "chosen_column is 'better'"),
        ({"prompts": [*PAIRS[:17], PAIRS[0] | {"chosen": 5}]}, r"row 17: 'chosen' is 5 \(int\)"),
        ({"prompts": [*PAIRS[:17], PAIRS[0] | {"rejected": float("nan")}]}, r"row 17: 'rejected' is nan \(float\)"),
        ({"prompts": [*PAIRS[:17], PAIRS[0] | {"prompt": None}]}, "row 17: 'prompt' is empty"),
        ({"prompts": [*PAIRS[:17], PAIRS[0] | {"chosen": [GOOD]}]}, "row 17: of 'chosen' and 'rejected' one is text"),
        ({"prompts": [{"prompt": "q", "chosen": [USER], "rejected": [BAD]}]}, "row 0: 'chosen' adds nothing"),
        (
            {"prompts": [row | {"rejected": row["chosen"]} for row in PAIRS]},
            "chosen equals rejected in every one of its 20",
        ),
    ],
)
def test_faults_name_row_and_field(tmp_path: Path, data: dict[str, Any], fault: str) -> None:
    with pytest.raises(ExecutorError, match=fault):
        found(tmp_path, data)


def test_prompts_keep_their_rows(tmp_path: Path) -> None:
    row = {"prompt": "p", "reference": "r", "level": 3}
    assert prompts(tmp_path, {"prompts": [row]}) == [Asked("p", row)]
    assert prompts(tmp_path, {"prompts": ["p"]}) == [Asked("p", {"text": "p"})]
    template = {"prompts": [row], "prompt_template": "{prompt}/{level}"}
    assert prompts(tmp_path, template) == [Asked("p/3", row)]
    path = write_jsonl(tmp_path / "t.jsonl", [{"q": "p"}])
    assert prompts(tmp_path, {"jsonl": {"path": str(path), "query_field": "q"}}) == [Asked("p", {"q": "p"})]


def test_prompt_that_is_answered_already(tmp_path: Path) -> None:
    with pytest.raises(ExecutorError, match="row 0: 'prompt' ends with the assistant's turn"):
        prompts(tmp_path, {"prompts": [{"prompt": [USER, GOOD]}]})


@pytest.mark.parametrize(
    ("reward", "answers", "rows", "wanted"),
    [
        ({"identifier": "exact_match"}, [" a ", "b"], [{"answer": "a"}, {"answer": "a"}], [1, 0]),
        ({"identifier": "exact_match"}, ["4", "x"], [{"solution": 4}, {"solution": 4}], [1, 0]),
        ({"identifier": "json_validity"}, ['{"a": [1]}', "{a}", "NaN", " 3 "], [{}] * 4, [1, 0, 0, 1]),
        ({"identifier": "length"}, [" abc ", ""], [{}] * 2, [3, 0]),
        ({"identifier": "length", "max_length": 2, "scale": -0.5}, ["abc"], [{}], [-1]),
        ({"identifier": "sentiment"}, ["A good, happy day", "sad", "good but bad", "?"], [{}] * 4, [1, -1, 0, 0]),
        ({"type": "sentiment", "identifier": None}, ["wonderful!"], [{}], [1]),
    ],
)
def test_built_in_rewards(
    tmp_path: Path, reward: dict[str, Any], answers: list[str], rows: list[dict[str, Any]], wanted: list[float]
) -> None:
    ctx = context_of(tmp_path, {"reward_model": {"type": "function"} | reward})
    assert reward_function(ctx)(["p"] * len(answers), answers, rows) == wanted
