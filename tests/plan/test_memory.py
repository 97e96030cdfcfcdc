"""Memory estimates against the figures that model cards and papers give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.plan.memory import fit, shape_of
from mloc_dagster.spec.stage import StageSpec

GIB = 1 << 30
LLAMA_3_8B = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
}  # fmt: skip
GPT_2 = {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}


def spec_of(**keys: Any) -> StageSpec:
    return StageSpec.model_validate({"task_type": "inference", **keys})


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B))
    return tmp_path


def test_parameters_from_a_config(llama: Path) -> None:
    shape = shape_of(llama, "meta/unnamed")
    assert shape and shape.known and shape.parameters == pytest.approx(8.03e9, rel=0.01)
    assert (shape.layers, shape.kv_heads, shape.head_dim, shape.context) == (32, 8, 128, 8192)


def test_an_inner_config_and_the_stored_weights_count(llama: Path) -> None:
    (llama / "config.json").write_text(json.dumps({"text_config": LLAMA_3_8B}))
    with (llama / "model.safetensors").open("wb") as file:
        file.truncate(3 << 20)
    shape = shape_of(llama, "x")
    assert shape and shape.parameters == (3 << 20) / 2


def test_older_names_of_the_keys(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**GPT_2, "tie_word_embeddings": True}))
    shape = shape_of(tmp_path, "gpt2")
    assert shape and (shape.layers, shape.hidden, shape.context, shape.head_dim) == (12, 768, 1024, 64)
    assert shape.parameters == pytest.approx(124e6, rel=0.3)  # counted as a model with a gated MLP


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 8e9),
        ("org/SmolLM2-135M", 135e6),
        ("Qwen/Qwen2.5-0.5B", 0.5e9),
        ("org/phi-2", None),
        ("70b-org/plain", None),
        ("org/v1.5-bert", None),
    ],
)
def test_a_guess_from_the_name(name: str, parameters: float | None) -> None:
    shape = shape_of(None, name)
    assert (shape.parameters if shape else None) == parameters
    if shape:
        assert not shape.known and 12 * shape.layers * shape.hidden**2 == pytest.approx(parameters, rel=0.25)


def test_weights_and_cache_of_generation(llama: Path) -> None:
    shape = shape_of(llama, "x")
    assert shape
    found = fit(spec_of(model={"vllm": {"max_model_len": 8192}}), shape, 1, trains=False)
    assert found.weights == pytest.approx(16.06e9, rel=0.01)
    assert found.cache == 2 * 32 * 8 * 128 * 2 * 8192 * 8  # 1 GiB for each of 8 sequences
    assert found.optimizer == 0 and found.band == 0.2
    assert found.total == found.weights + found.cache + found.activations + GIB // 2


def test_the_cpu_has_wider_weights_and_a_named_type_wins(llama: Path) -> None:
    shape = shape_of(llama, "x")
    assert shape
    on_gpu, on_cpu = (fit(spec_of(), shape, devices, trains=False).weights for devices in (1, 0))
    assert on_cpu == 2 * on_gpu
    named = spec_of(model={"transformers": {"dtype": "float32"}})
    assert fit(named, shape, 1, trains=False).weights == on_cpu
    assert fit(spec_of(model={"config": {"bf16": True}}), shape, 0, trains=False).weights == on_gpu


@pytest.mark.parametrize(
    ("model", "task_type", "gigabytes"),
    [
        ({"transformers": {"load_in_8bit": True}}, "inference", 8.03),
        ({"transformers": {"load_in_4bit": True}}, "inference", 4.52),
        ({"adapter": {"type": "qlora"}}, "lora_sft", 4.52),
        ({"adapter": {"type": "lora"}}, "lora_sft", 16.06),
    ],
)
def test_weights_of_a_few_bits(llama: Path, model: dict[str, Any], task_type: str, gigabytes: float) -> None:
    shape = shape_of(llama, "x")
    assert shape
    found = fit(spec_of(model=model, task_type=task_type), shape, 1, trains=task_type != "inference")
    assert found.weights == pytest.approx(gigabytes * 1e9, rel=0.01)


def test_a_tensor_parallel_model_is_shared(llama: Path) -> None:
    shape = shape_of(llama, "x")
    assert shape
    one, two = (fit(spec_of(model={"vllm": {"tensor_parallel_size": n}}), shape, n, trains=False) for n in (1, 2))
    assert (two.weights, two.cache) == (one.weights // 2, one.cache // 2)


def test_full_training_needs_sixteen_bytes_beside_each_weight_and_an_adapter_few(llama: Path) -> None:
    shape = shape_of(llama, "x")
    assert shape
    full = fit(spec_of(task_type="sft"), shape, 1, trains=True)
    assert full.optimizer == pytest.approx(16 * shape.parameters, rel=0.01)
    small, large = (
        fit(spec_of(task_type="sft", lora={"r": rank}), shape, 1, trains=True).optimizer for rank in (8, 64)
    )
    assert small < full.optimizer / 100 and large == 8 * small


def test_activations_grow_with_rows_and_length_and_shrink_with_checkpointing(llama: Path) -> None:
    shape = shape_of(llama, "x")
    assert shape
    training = {"max_seq_length": 2048, "per_device_train_batch_size": 2}
    base = fit(spec_of(task_type="sft", training=training), shape, 1, trains=True).activations
    assert base == 34 * 2048 * 2 * 4096 * 32  # s·b·h bytes a layer
    for key, value in (("max_seq_length", 4096), ("per_device_train_batch_size", 4)):
        assert fit(spec_of(task_type="sft", training=training | {key: value}), shape, 1, True).activations == 2 * base
    saving = spec_of(task_type="sft", training=training | {"gradient_checkpointing": True})
    assert fit(saving, shape, 1, trains=True).activations == base // 32
