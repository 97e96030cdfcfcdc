"""Rows that fail alone: their own file, and a task file that runs them again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mloc_dagster.placement.local.work import RunInfo
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_file
from mloc_dagster.store.results import read_envelope
from tests.executors.conftest import make_random_llama
from tests.placement.conftest import next_run, plan_of, run_all

pytestmark = pytest.mark.slow

SPEC = """
  stages:
    - {name: first, taskType: echo, echo: {limit: 300, text: "END and $${X}"}}
    - name: ask
      taskType: inference
      model: {source: {type: local, identifier: MODEL}, transformers: {batch_size: 4}}
      parallel: {enabled: true, max_shards: 2}
      resources: {replicas: 2, hardware: {gpu: {count: 0}}}
      inference:
        max_tokens: 4
        temperature: 0
        stop: ["${first.result.echo.text}", "${PATH}"]
      data: {items: [a, LONG, c], metadata: [{k: 1}, {k: 2}, {k: 3}]}
"""


def test_rows_that_failed_can_be_run_again(info: RunInfo, tmp_path: Path) -> None:
    model = make_random_llama(tmp_path / "llama")
    plan = plan_of(SPEC.replace("MODEL", str(model)).replace("LONG", "x" * 256), tmp_path)
    run_all(plan, info)
    folder = info.home.run_folder(info.task_id, "ask")
    result = read_envelope(folder / "responses.json").result
    assert [item["finish_reason"] for item in result["items"]] == ["length", "error", "length"]
    assert [shard["rows"] for shard in result["shards"]] == [1, 2]
    told = result["error_rows"]
    assert (told["count"], told["rows"]) == (1, [1])
    assert told["rerun"] == f"mloc run {folder / 'artifacts' / 'error_rows.yaml'}"
    [row] = [json.loads(line) for line in Path(told["path"]).read_text("utf-8").splitlines()]
    assert (row["k"], row["prompt"]) == (2, "x" * 256)
    Path(told["path"]).write_text(json.dumps({**row, "prompt": "short"}) + "\n")
    task = load_file(told["rerun"].removeprefix("mloc run "))
    assert task.warnings == () and task.owner == "ann"
    assert task.stages[0].raw["inference"]["stop"] == ["END and $${X}", "${PATH}"]
    again = next_run(info, 2)
    run_all(compile_plan(task), again)
    [item] = read_envelope(again.home.run_folder(again.task_id, task.stages[0].name) / "responses.json").result["items"]
    assert item["metadata"] == {"k": 2} and item["prompt"] == "short" and item["finish_reason"] == "length"
