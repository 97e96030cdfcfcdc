"""Stages on two Docker Engines that share nothing but an artifact store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from dagster import DagsterInstance

from mloc_dagster.definitions import worker
from mloc_dagster.definitions.submit import create_run, store_spec
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_text
from mloc_dagster.store.home import Home
from mloc_dagster.usage import fill
from mloc_dagster.usage.settings import UsageSettings
from mloc_dagster.usage.stats import Asked, breakdown
from mloc_dagster.usage.table import UsageTable
from tests.definitions.conftest import get
from tests.docker_engine import Engine
from tests.tiny_model import make_tiny_llama

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(600)]

PIPELINE = """\
apiVersion: mloc/v1
metadata: {name: both, owner: ann}
spec:
  resources: {hardware: {gpu: {count: 0}}}
  model: {source: {type: local, identifier: MODEL}}
  stages:
    - name: tune
      spec:
        taskType: lora_sft
        resources: {hardware: {memory: 900Mi}}
        data: {prompts: [{prompt: "a b", response: "c d"}, {prompt: "e f", response: "g h"}]}
        lora: {r: 4}
        training: {max_steps: 4, batch_size: 2, max_seq_length: 32}
    - name: answer
      spec:
        taskType: inference
        resources: {hardware: {memory: 1500Mi}}
        model: {adapters: [{type: lora, path: "${tune.result.final_lora_path}"}]}
        data: {type: list, items: [a b, e f]}
        inference: {max_tokens: 4, temperature: 0}
"""


def execute(instance: DagsterInstance, home: Home, text: str, folder: Path) -> str:
    """Run a task file to its end in this process; returns the run's id."""
    plan = compile_plan(load_text(text, base=folder))
    run = create_run(instance, plan, store_spec(home, plan.task), fresh=False, tags=None)
    worker.execute(instance, run.run_id)
    return run.run_id


def result(home: Home, run_id: str, stage: str) -> dict:
    return json.loads((home.run_folder(run_id, stage) / "responses.json").read_text("utf-8"))


def test_each_stage_on_a_worker_of_its_own(
    instance: DagsterInstance, home: Home, declare: Callable, tmp_path: Path, engines: tuple[Engine, Engine]
) -> None:
    make_tiny_llama(tmp_path / "model", steps=0)
    run_id = execute(instance, home, PIPELINE.replace("MODEL", str(tmp_path / "model")), tmp_path)
    assert get(instance, run_id).is_success
    tuned, answered = result(home, run_id, "tune"), result(home, run_id, "answer")
    assert (tuned["worker"], answered["worker"]) == ("one", "two")
    lora = Path(tuned["result"]["final_lora_path"])
    assert lora.is_relative_to(home.results) and (lora / "adapter_model.safetensors").is_file()
    assert len(answered["result"]["items"]) == 2
    log = (home.run_folder(run_id, "tune") / "logs" / "stdout.log").read_text("utf-8")
    assert log and "\x1e" not in log
    for engine in engines:
        assert engine.client().containers.list(all=True) == []
    table = UsageTable.of_instance(instance)
    fill.refresh(instance, table)
    used = {row["stage"]: row["cpu_hours"] for row in breakdown(table, Asked(), UsageSettings(), "stage")}
    assert used["both/tune"] > 0 < used["both/answer"] and not used.get("-"), "what each held, and nothing besides"
