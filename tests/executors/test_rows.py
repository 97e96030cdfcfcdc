"""Training rows: order of sources, columns, faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from executors.base import ExecutorError
from executors.rows import Example, Pair, Whole, examples, training_rows
from tests.executors.conftest import write_jsonl
from tests.executors.context_of import context_of

PAIRS = [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(20)]


def found(folder: Path, data: dict[str, Any], **fields: Any) -> list[Example]:
    return examples(training_rows(context_of(folder / "out", {"data": data}, **fields)))


def preferences(folder: Path) -> Path:
    path = folder / "prefs" / "data"
    path.mkdir(parents=True)
    for split, count in (("train_prefs", 8), ("train_sft", 6)):
        Dataset.from_list(
            [{"prompt": f"{split}{i}", "chosen": [{"role": "user", "content": f"{split}{i}"},
                                                  {"role": "assistant", "content": f"good{i}"}]} for i in range(count)]
        ).to_parquet(path / f"{split}-00000-of-00001.parquet")  # fmt: skip
    (path.parent / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train_prefs\n    path: data/train_prefs-*\n"
        "  - split: train_sft\n    path: data/train_sft-*\n---\n"
    )
    return path.parent


def test_jsonl_comes_before_all_others(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"q": "a", "r": "b"}])
    data = {"jsonl": {"path": str(path), "prompt_field": "q", "response_field": "r"}, "prompts": PAIRS}
    assert found(tmp_path, data) == [Pair("a", "b")]


def test_inline_rows_and_max_samples(tmp_path: Path) -> None:
    assert found(tmp_path, {"prompts": PAIRS, "max_samples": 2}) == [Pair("p0", "r0"), Pair("p1", "r1")]
    assert found(tmp_path, {"prompts": ["whole"]}) == [Whole("whole")]
    assert found(tmp_path, {"preferences": [{"prompt": "p", "chosen": "c", "rejected": "r"}]}) == [Pair("p", "c")]


def test_configuration_that_is_a_split_prefix_falls_back_with_a_warning(tmp_path: Path) -> None:
    data = {"dataset_name": "o/prefs", "config_name": "train_prefs", "split": "train[:3]", "prompt_column": "prompt",
            "response_column": "chosen"}  # fmt: skip
    rows = training_rows(context_of(tmp_path / "out", {"data": data}, data_path=preferences(tmp_path)))
    assert "'train_prefs' is a split" in rows.table.warnings[0]
    assert examples(rows)[2] == Pair(
        [{"role": "user", "content": "train_prefs2"}], [{"role": "assistant", "content": "good2"}]
    )
    assert len(rows.table.rows) == 3


def test_template_of_the_older_dialect(tmp_path: Path) -> None:
    data = {
        "prompts": [{"instruction": "do", "response": "done"}],
        "prompt_template": "Q: {instruction}\nA: {response}",
    }
    assert found(tmp_path, data) == [Whole("Q: do\nA: done")]
    with pytest.raises(ExecutorError, match=r"prompt_template names \{input\}.*no such column"):
        found(tmp_path, data | {"prompt_template": "{input}"})


def test_csv_file(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("ask,reply\na,b\n")
    data = {"dataset_name": "t.csv", "prompt_column": "ask", "response_column": "reply"}
    assert found(tmp_path, data, data_path=tmp_path / "t.csv") == [Pair("a", "b")]


def test_messages_column(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert found(tmp_path, {"prompts": [{"messages": turns}]}) == [Whole(turns)]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({}, "no training rows"),
        ({"prompts": []}, "0 rows"),
        (
            {"prompts": PAIRS, "response_column": "answer"},
            "response_column is 'answer', but data.prompts has no",
        ),
        ({"prompts": PAIRS, "text_field": "body"}, "text_field is 'body'"),
        ({"prompts": [*PAIRS[:17], {"prompt": 5, "response": "x"}]}, r"row 17: 'prompt' is 5 \(int\)"),
        ({"prompts": [*PAIRS[:17], {"prompt": "p"}]}, r"row 17: 'response' is empty"),
        ({"prompts": PAIRS, "max_samples": 0}, "0 rows"),
    ],
)
def test_faults_name_row_and_column(tmp_path: Path, data: dict[str, Any], fault: str) -> None:
    with pytest.raises(ExecutorError, match=fault):
        found(tmp_path, data)


def test_line_that_is_not_json(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n{"prompt": \n')
    with pytest.raises(ExecutorError, match=r"t\.jsonl line 2 is not JSON"):
        found(tmp_path, {"jsonl": {"path": str(path)}})
