"""Adapters: LoRA, AdaLoRA, QLoRA and quantized base weights."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from executors.base import ExecutorError
from executors.host import execute
from executors.training.adalora import start_rank
from executors.training.lora import adapter_config, lora_settings, quantization
from mloc_dagster.spec.model import Lora
from tests.executors.conftest import MakeJob
from tests.executors.context_of import context_of

ROWS: dict[str, dict[str, Any]] = {
    "sft": {"data": {"prompts": [{"prompt": "abc", "response": "cba"}, {"prompt": "xy", "response": "yx"}]}},
    "dpo": {"data": {"preferences": [{"prompt": "abc", "chosen": "cba", "rejected": "abc"}]}},
    "reward": {"data": {"preferences": [{"prompt": "abc", "chosen": "cba", "rejected": "abc"}]}},
    "grpo": {
        "data": {"prompts": ["abc", "xy"]},
        "generation": {"max_new_tokens": 4},
        "reward_model": {"type": "function", "identifier": "length"},
    },
}
without_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
with_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


def adapted(task_type: str, adapter: dict[str, Any], steps: int = 20) -> dict[str, Any]:
    training = {"max_steps": steps, "per_device_train_batch_size": 8, "learning_rate": 5e-3, "logging_steps": 1}
    return ROWS[task_type] | {"model": {"adapter": adapter}, "training": training}


@pytest.mark.parametrize("task_type", ROWS)
def test_adalora_spends_its_budget(job: MakeJob, task_type: str) -> None:
    """Each layer starts with rank 6; at the end 4 on average are left, in layers of different ranks."""
    result = execute(job(task_type, adapted(task_type, {"type": "adalora", "r": 4, "lora_dropout": 0.0})))
    folder = Path(result.payload["final_lora_path"])
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "ADALORA" and config["total_step"] == 20 and config["init_r"] == start_rank(4) == 6
    tensors = load_file(folder / "adapter_model.safetensors")
    ranks = [int(torch.count_nonzero(part)) for name, part in tensors.items() if "lora_E" in name]
    assert sum(ranks) <= 4 * len(ranks) and max(ranks) > min(ranks)


def test_adalora_can_be_merged_for_inference(job: MakeJob) -> None:
    spec = adapted("sft", {"type": "adalora", "r": 8, "lora_dropout": 0.0, "lora_alpha": 64}, steps=150)
    folder = execute(job("sft", spec, name="tune")).payload["final_lora_path"]
    ask = {"data": {"items": ["abc", "xy"]}, "inference": {"max_tokens": 8, "temperature": 0}}
    tuned = ask | {"model": {"adapters": [{"path": folder, "apply": "merge"}]}}
    items = execute(job("inference", tuned, name="ask")).payload["items"]
    assert [item["output"].strip() for item in items] == ["cba", "yx"]


def test_settings_of_both_dialects(tmp_path: Path) -> None:
    adapter = {"type": "lora", "r": 4, "lora_alpha": 8, "bias": "all"}
    ctx = context_of(tmp_path, {"model": {"adapter": adapter}, "lora": {"r": 2, "use_rslora": True}})
    config = adapter_config(ctx, lora_settings(ctx))
    assert (config.r, config.lora_alpha, config.bias, config.use_rslora) == (2, 8, "all", True)


def test_adalora_has_no_rslora(tmp_path: Path) -> None:
    ctx = context_of(tmp_path, {"model": {"adapter": {"type": "adalora"}}})
    with pytest.raises(ExecutorError, match="use_rslora"):
        adapter_config(ctx, Lora(use_rslora=True))


@pytest.mark.parametrize(
    ("model", "lora", "fault"),
    [
        (
            {"transformers": {"load_in_8bit": True}},
            None,
            "load_in_8bit asks for weights of 8 bits, which cannot be trained",
        ),
        ({"transformers": {"load_in_4bit": True, "load_in_8bit": True}}, Lora(), "load_in_4bit and load_in_8bit"),
        ({"adapter": {"type": "qlora"}, "transformers": {"load_in_8bit": True}}, Lora(), "qlora means 4 bits"),
    ],
)
def test_widths_that_cannot_be(tmp_path: Path, model: dict[str, Any], lora: Lora | None, fault: str) -> None:
    with pytest.raises(ExecutorError, match=fault):
        quantization(context_of(tmp_path, {"model": model}), False, lora)


@without_bitsandbytes
@pytest.mark.parametrize("key", ["model.adapter.type qlora", "model.transformers.load_in_8bit"])
def test_without_bitsandbytes_a_gpu_refuses_and_a_cpu_tells(job: MakeJob, tmp_path: Path, key: str) -> None:
    model = {"adapter": {"type": "qlora"}} if "qlora" in key else {"transformers": {"load_in_8bit": True}}
    with pytest.raises(ExecutorError, match=f"{key} needs bitsandbytes, which is not installed"):
        quantization(context_of(tmp_path, {"model": model}), True, Lora())
    spec = adapted("sft", {}, steps=1) | {"model": model, "lora": {"r": 4}}
    warnings = execute(job("sft" if "qlora" in key else "lora_sft", spec)).metadata["warnings"]
    assert any(text.startswith(f"{key}: weights of") and "unquantized" in text for text in warnings)


@with_bitsandbytes
@pytest.mark.parametrize("task_type", ROWS)
@pytest.mark.parametrize("bits", [4, 8])
def test_adapter_on_quantized_weights(job: MakeJob, task_type: str, bits: int) -> None:
    spec = adapted(task_type, {"type": "lora", "r": 4}, steps=4)
    spec["model"]["transformers"] = {f"load_in_{bits}bit": True}
    result = execute(job(task_type, spec))
    assert result.metadata["weights_changed"] and not any("bits" in text for text in result.metadata["warnings"])
