"""Training in several containers of one engine: they meet, one result is published, and they end together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance

from mloc_dagster.definitions.submit import submit_file
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_text
from mloc_dagster.store.home import Home
from tests.definitions.conftest import get
from tests.docker_engine import Engine
from tests.tiny_model import make_tiny_llama
from tests.waiting import wait_for

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]

TRAIN = """\
apiVersion: mloc/v1
metadata: {name: both, owner: ann}
spec:
  taskType: lora_sft
  resources: {replicas: 2, hardware: {cpu: 500m, memory: 900Mi, gpu: {count: 0}}}
  model: {source: {type: local, identifier: MODEL}}
  data: {prompts: [{prompt: "a b", response: "c d"}, {prompt: "e f", response: "g h"}]}
  lora: {r: 4, dropout: 0.0}
  training: {max_steps: 150, batch_size: 1, logging_steps: 10, save_steps: 10, max_seq_length: 32}
"""


def test_a_killed_container_ends_both_and_both_go_on_from_the_checkpoint(
    instance: DagsterInstance, home: Home, declare: Callable, tmp_path: Path, engines: tuple[Engine, Engine], s3: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLOC_SYNC_SECONDS", "1")
    declare(keep_failed_seconds=0)
    make_tiny_llama(tmp_path / "model", steps=0)
    plan = compile_plan(load_text(TRAIN.replace("MODEL", str(tmp_path / "model")), base=tmp_path))
    run_id = submit_file(instance, home, plan)

    def containers() -> list[Any]:
        found = [one for engine in engines for one in engine.client().containers.list()]
        return sorted(found, key=lambda one: one.labels["mloc.replica"])

    def stored() -> bool:
        blobs = [one["Key"] for one in s3.list_objects_v2(Bucket="artifacts").get("Contents", [])]
        data = (s3.get_object(Bucket="artifacts", Key=key)["Body"].read() for key in blobs if "/blobs/" in key)
        return any(b"checkpoints/checkpoint-" in one and b"complete.json" in one for one in data)

    wait_for(lambda: stored() or get(instance, run_id).is_finished, "a checkpoint in the store", 400)
    first, second = containers()
    limits = [(one.attrs["HostConfig"]["NanoCpus"], one.attrs["HostConfig"]["Memory"]) for one in (first, second)]
    assert limits == [(500_000_000, 900 << 20)] * 2
    assert second.attrs["HostConfig"]["NetworkMode"] == f"container:{first.id}"
    second.kill()
    wait_for(lambda: get(instance, run_id).is_finished, "the training", 500)
    told = "\n".join(one.user_message for one in instance.all_logs(run_id))
    assert get(instance, run_id).is_success, told
    assert "and 1 more" in told and "was killed from outside (exit code 137" in told
    result = json.loads((home.run_folder(run_id, "lora_sft") / "responses.json").read_text("utf-8"))
    assert result["result"]["world_size"] == 2 and result["result"]["metrics"]["steps"] == 150
    assert int(result["result"]["resume_from_path"].rpartition("-")[2]) >= 10
    assert [one for engine in engines for one in engine.client().containers.list(all=True)] == []
