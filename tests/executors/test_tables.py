"""Slices and shuffles mean what `datasets` means by them."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset
from datasets.arrow_reader import ReadInstruction

from executors.base import ExecutorError
from executors.tables import open_table, table_of
from tests.executors.conftest import write_jsonl

COUNT = 137


@pytest.mark.parametrize(
    "split", ["train", "train[:20]", "train[60:100]", "train[:1%]", "train[-50:]", "train[9%:90%]", "train[:500]"]
)
def test_same_rows_as_datasets(tmp_path: Path, split: str) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"a": number} for number in range(COUNT)])
    ours = [row["a"] for row in open_table(path, split=split, cache=tmp_path).rows]
    [theirs] = ReadInstruction.from_spec(split.replace("500", str(COUNT))).to_absolute({"train": COUNT})
    assert ours == list(range(theirs.from_ or 0, COUNT if theirs.to is None else theirs.to))


def test_unreadable_split(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"a": 1}])
    with pytest.raises(ExecutorError, match=r"data\.split: 'train\[1' is not a split"):
        open_table(path, split="train[1", cache=tmp_path)


def test_shuffle_is_that_of_datasets() -> None:
    rows = [{"a": number} for number in range(50)]
    shuffled = table_of(rows, "x").shuffled(7)
    assert [row["a"] for row in shuffled.rows] == Dataset.from_list(rows).shuffle(seed=7)["a"]


def test_unknown_format_names_those_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_bytes(b"")
    with pytest.raises(ExecutorError, match=r"no known data format \(\.xlsx\)"):
        open_table(tmp_path / "t.xlsx", cache=tmp_path)
