"""Training whose container is killed goes on from its checkpoint, on another engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, DagsterRunStatus

from mloc_dagster.definitions.submit import submit_file
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_text
from mloc_dagster.store.home import Home
from tests.definitions.conftest import get, status
from tests.docker_engine import Engine
from tests.tiny_model import make_tiny_llama
from tests.waiting import wait_for

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(600)]

LONG = """\
apiVersion: mloc/v1
metadata: {name: long, owner: ann}
spec:
  taskType: lora_sft
  resources: {hardware: {memory: 900Mi, gpu: {count: 0}}}
  model: {source: {type: local, identifier: MODEL}}
  data: {prompts: [{prompt: "a b", response: "c d"}, {prompt: "e f", response: "g h"}]}
  lora: {r: 4, dropout: 0.1}
  training: {max_steps: 200, batch_size: 2, logging_steps: 20, save_steps: 20, max_seq_length: 32}
"""


def test_a_killed_training_goes_on_from_its_checkpoint_on_the_other_engine(
    instance: DagsterInstance, home: Home, declare: Callable, tmp_path: Path, engines: tuple[Engine, Engine], s3: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLOC_SYNC_SECONDS", "1")
    declare(keep_failed_seconds=0)
    make_tiny_llama(tmp_path / "model", steps=0)
    plan = compile_plan(load_text(LONG.replace("MODEL", str(tmp_path / "model")), base=tmp_path))
    run_id = submit_file(instance, home, plan)

    def stored() -> bool:
        if get(instance, run_id).is_finished:
            return True
        states = [one["Key"] for one in s3.list_objects_v2(Bucket="artifacts").get("Contents", [])]
        state = next((key for key in states if key.endswith("/state.json")), None)
        if state is None:
            return False
        digest = json.loads(s3.get_object(Bucket="artifacts", Key=state)["Body"].read())["out"]
        listing = s3.get_object(Bucket="artifacts", Key=f"mloc/blobs/{digest[:2]}/{digest}")["Body"].read()
        return b"checkpoints/checkpoint-" in listing and b"complete.json" in listing

    wait_for(stored, "a checkpoint in the store", 120)
    [killed] = engines[0].client().containers.list()
    killed.kill()
    assert status(instance, run_id) is DagsterRunStatus.SUCCESS
    told = json.loads((home.run_folder(run_id, "lora_sft") / "responses.json").read_text("utf-8"))
    assert told["worker"] == "two"
    assert int(told["result"]["resume_from_path"].rpartition("-")[2]) >= 20
    assert told["result"]["metrics"]["steps"] == 200
