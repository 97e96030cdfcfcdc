"""The slice grammar means what `datasets` means by it."""

from __future__ import annotations

import pytest
from datasets import Dataset
from datasets.arrow_reader import ReadInstruction

from executors.base import ExecutorError
from executors.slices import parse_split
from executors.tables import table_of

COUNT = 137


@pytest.mark.parametrize(
    "text", ["train", "train[:20]", "train[60:100]", "train[:1%]", "train[-50:]", "train[10%:90%]", "train[:10]+train[-5:]"]
)
def test_same_rows_as_datasets(text: str) -> None:
    ours = [row for part in parse_split(text) for row in part.rows(COUNT)]
    theirs = ReadInstruction.from_spec(text).to_absolute({"train": COUNT})
    assert ours == [row for part in theirs for row in range(part.from_ or 0, COUNT if part.to is None else part.to)]


def test_bounds_beyond_the_end_are_cut() -> None:
    assert parse_split("train[:200]")[0].rows(3) == range(3)


@pytest.mark.parametrize("text", ["", "train[", "train[1:2:3]", "train[a:b]", "[:5]"])
def test_unreadable_split(text: str) -> None:
    with pytest.raises(ExecutorError, match="cannot be read"):
        parse_split(text)


def test_shuffle_is_that_of_datasets() -> None:
    rows = [{"a": number} for number in range(50)]
    shuffled = table_of(rows, "x").shuffled(7)
    assert [row["a"] for row in shuffled.rows] == Dataset.from_list(rows).shuffle(seed=7)["a"]
