"""Prompt rows from every source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from executors.base import ExecutorError
from executors.prompts import prompt_rows
from mloc_dagster.spec.references import BadReference
from tests.executors.conftest import write_jsonl
from tests.executors.context_of import context_of


def rows(folder: Path, spec: dict[str, Any], **fields: Any) -> list[tuple[int, Any, dict]]:
    found = prompt_rows(context_of(folder / "out", spec, **fields))
    return [(row.index, row.prompt, row.metadata) for row in found.rows]


def questions(folder: Path) -> Path:
    """A data set as a hub repository has it: parquet files of two splits."""
    train = [{"text": f"q{i}", "turns": [f"t{i}", "more"], "chat": [{"role": "user", "content": f"c{i}"}],
              "answer": f"a{i}", "id": i} for i in range(10)]  # fmt: skip
    data = DatasetDict({"train": Dataset.from_list(train), "validation": Dataset.from_list(train[:3])})
    path = folder / "questions" / "data"
    path.mkdir(parents=True)
    for split in data:
        data[split].to_parquet(path / f"{split}-00000-of-00001.parquet")
    return path.parent


def test_list_with_metadata(tmp_path: Path) -> None:
    spec = {"data": {"type": "list", "items": ["a", "b"], "metadata": [{"k": 1}, {"k": 2}]}}
    assert rows(tmp_path, spec) == [(0, "a", {"k": 1}), (1, "b", {"k": 2})]


def test_list_of_maps_carries_the_other_keys(tmp_path: Path) -> None:
    items = [{"prompt": "a", "reference": "A"}, {"messages": [{"role": "user", "content": "hi"}], "metadata": {"k": 1}}]
    assert rows(tmp_path, {"data": {"items": items}}) == [
        (0, "a", {"reference": "A"}), (1, [{"role": "user", "content": "hi"}], {"k": 1}),
    ]  # fmt: skip


def test_list_metadata_of_another_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExecutorError, match="1 entries for 2 items"):
        rows(tmp_path, {"data": {"items": ["a", "b"], "metadata": [{}]}})


def test_shuffled_list_is_renumbered_and_reproducible(tmp_path: Path) -> None:
    spec = {"data": {"items": [str(i) for i in range(20)], "shuffle": True, "seed": 3}}
    once = rows(tmp_path, spec)
    assert once == rows(tmp_path, spec)
    assert [index for index, _, _ in once] == list(range(20))
    assert sorted(int(prompt) for _, prompt, _ in once) == list(range(20)) != [int(prompt) for _, prompt, _ in once]


def test_other_sources(tmp_path: Path) -> None:
    assert rows(tmp_path, {"data": {"type": "static", "task": "do"}}) == [(0, "do", {})]
    assert rows(tmp_path, {"inference": {"prompts": ["a", "b"]}})[1] == (1, "b", {})
    assert rows(tmp_path, {"data": {"prompts": ["a"]}}) == [(0, "a", {})]
    assert rows(tmp_path, {"query": "why"}) == [(0, "why", {})]
    assert rows(tmp_path, {"task": ["x", "y"]})[1] == (1, "y", {})


def test_dataset_is_sliced_then_shuffled(tmp_path: Path) -> None:
    spec = {"data": {"type": "dataset", "url": "o/questions", "split": "train[2:6]", "shuffle": True, "seed": 5}}
    prompts = [prompt for _, prompt, _ in rows(tmp_path, spec, data_path=questions(tmp_path))]
    expected = Dataset.from_dict({"text": ["q2", "q3", "q4", "q5"]}).shuffle(seed=5)["text"]
    assert prompts == list(expected)


def test_list_and_conversation_columns(tmp_path: Path) -> None:
    path = questions(tmp_path)
    turns = {"data": {"url": "x", "column": "turns", "split": "train[:2]"}}
    assert [prompt for _, prompt, _ in rows(tmp_path, turns, data_path=path)] == ["t0", "t1"]
    chat = {"data": {"url": "x", "column": "chat", "split": "validation[-1:]"}}
    assert rows(tmp_path, chat, data_path=path)[0][1] == [{"role": "user", "content": "c2"}]


@pytest.mark.parametrize("asked", [{"answer": "reference"}, {"reference": "answer"}])
def test_metadata_columns_rename_either_way_round(tmp_path: Path, asked: dict[str, str]) -> None:
    spec = {"data": {"url": "x", "split": "train[:1]", "metadata_columns": asked}}
    assert rows(tmp_path, spec, data_path=questions(tmp_path)) == [(0, "q0", {"reference": "a0"})]


def test_metadata_list_and_all(tmp_path: Path) -> None:
    path = questions(tmp_path)
    some = {"data": {"url": "x", "split": "train[:1]", "metadata_columns": ["id"]}}
    assert rows(tmp_path, some, data_path=path)[0][2] == {"id": 0}
    everything = {"data": {"url": "x", "split": "train[:1]", "metadata_include_all": True}}
    assert set(rows(tmp_path, everything, data_path=path)[0][2]) == {"turns", "chat", "answer", "id"}


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({"column": "txt"}, r"data.column is 'txt', but .* has no such column"),
        ({"split": "test"}, "split is 'test', which questions lacks"),
        ({"metadata_columns": ["nope"]}, "data.metadata_columns is 'nope'"),
        ({"name": "nope"}, "config_name is 'nope'"),
        ({"split": "train[5:5]"}, "0 rows"),
    ],
)
def test_faults_name_key_and_value(tmp_path: Path, data: dict[str, Any], fault: str) -> None:
    with pytest.raises(ExecutorError, match=fault):
        rows(tmp_path, {"data": {"type": "dataset", "url": "x"} | data}, data_path=questions(tmp_path))


def test_bad_prompt_names_its_row(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": {"x": 1}}])
    with pytest.raises(ExecutorError, match="row 1, column prompt"):
        rows(tmp_path, {"data": {"jsonl": {"path": str(path)}}})


def test_jsonl_uses_the_first_alternative_that_works(tmp_path: Path) -> None:
    (tmp_path / "results" / "old" / "gen").mkdir(parents=True)
    write_jsonl(tmp_path / "results" / "old" / "gen" / "x.jsonl", [{"q": "a", "k": 1}])
    spec = {"data": {"jsonl": {"path": "/not/there.jsonl", "task_id": "old", "prompt_field": "q"},
                     "metadata_include_all": True}}  # fmt: skip
    assert rows(tmp_path, spec, results=tmp_path / "results") == [(0, "a", {"k": 1})]
    with pytest.raises(ExecutorError, match=r"path '/not/there.jsonl' is not there; taskId 'new' has no"):
        rows(tmp_path, {"data": {"jsonl": {"path": "/not/there.jsonl", "task_id": "new"}}}, results=tmp_path)


def test_no_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExecutorError, match="no prompts"):
        rows(tmp_path, {})


def envelopes(stage: str) -> dict[str, Any]:
    if stage != "one":
        raise BadReference(f"no {stage}")
    return {"result": {"items": [{"output": "first"}, {"output": "second"}], "n": {"a": 1}}}


def test_graph_template_shows_values_of_other_stages(tmp_path: Path) -> None:
    template = {
        "text": "{col0_label}={col0_value}; {col1_value}; {col2_value}",
        "columns": [
            {"label": "A", "expr": "one.result.items[1].output"},
            {"label": "B", "node": "one", "path": "result.n"},
            {"label": "C", "node": "gone", "default": "none"},
        ],
    }
    spec = {"data": {"type": "graph_template", "template": template}}
    [(_, prompt, _)] = rows(tmp_path, spec, envelopes=envelopes)
    assert prompt.startswith("A=second; {") and '"a": 1' in prompt and prompt.endswith("; none")
    layout = {"data": {"type": "graph_template", "template": template | {"text": None, "options": {"intro": "Look:"}}}}
    assert rows(tmp_path, layout, envelopes=envelopes)[0][1].startswith("Look:\n\n## A\nsecond")


def test_graph_template_cuts_long_values_with_a_note(tmp_path: Path) -> None:
    template = {"text": "{col0_value}", "columns": [{"label": "A", "expr": "x" * 100_000}]}
    [(_, prompt, _)] = rows(tmp_path, {"data": {"type": "graph_template", "template": template}})
    assert len(prompt) == 6000 and prompt.endswith("cut to fit]")


def test_input_sources_are_combined(tmp_path: Path) -> None:
    data = {
        "input_sources": {
            "queries": {"source": "manual", "questions": ["q1", "q2"]},
            "contexts": {"source": "previous_stage", "stage_output": "one", "context_field": "output"},
        },
        "processing": {"prompt_template": "{context} | {query}"},
    }
    assert [prompt for _, prompt, _ in rows(tmp_path, {"data": data}, envelopes=envelopes)] == [
        "first | q1",
        "second | q2",
    ]


def test_nothing_is_written_outside_the_work_folder(tmp_path: Path) -> None:
    path = questions(tmp_path)
    before = {file for file in tmp_path.rglob("*") if file.is_file()}
    rows(tmp_path, {"data": {"url": "x", "split": "train"}}, data_path=path)
    new = {file for file in tmp_path.rglob("*") if file.is_file()} - before
    assert new and all(file.is_relative_to(tmp_path / "out" / ".cache") for file in new)
