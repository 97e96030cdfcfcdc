"""How much memory a model needs on its device, from its config.

Weights are parameters times bytes of their type. The KV cache is 2 · layers · kv_heads · head_dim · bytes per token.
Adam keeps two float32 states a trained parameter. Activations of training follow Korthikanti et al. 2022,
"Reducing Activation Recomputation in Large Transformer Models", eq. 2 without its attention term, which fused
attention does not store: 34·s·b·h bytes a layer at 16 bits. A model whose config is not at hand is guessed from its
name as 12·layers·hidden² parameters with hidden = 128·layers.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from mloc_dagster.spec.base import Json
from mloc_dagster.spec.stage import StageSpec

_BYTES = {"float32": 4, "float": 4, "fp32": 4, "float16": 2, "half": 2, "fp16": 2, "bfloat16": 2, "bf16": 2, "auto": 2}
_NAME = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Shape:
    """What decides a model's size; `known` is False when it was guessed from the name."""

    parameters: float
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    known: bool


@dataclass(frozen=True)
class Fit:
    """Bytes that a stage needs on each device, and the share by which the estimate may be off."""

    weights: int
    cache: int
    optimizer: int
    activations: int
    band: float

    @property
    def total(self) -> int:
        """Bytes in all, with 0.5 GiB for the runtime."""
        return self.weights + self.cache + self.optimizer + self.activations + (1 << 29)


def shape_of(folder: Path | None, identifier: str) -> Shape | None:
    """Return the shape from `config.json` in a model folder, else a guess from a name such as `Mistral-7B`."""
    if folder is not None and (folder / "config.json").is_file():
        config = json.loads((folder / "config.json").read_text("utf-8"))
        return _from_config(config.get("text_config", config), folder)
    match = _NAME.search(identifier.rpartition("/")[2])
    if not match:
        return None
    parameters = float(match[1]) * (1e9 if match[2].lower() == "b" else 1e6)
    hidden = max(64, round((parameters * 128 / 12) ** (1 / 3) / 64) * 64)
    layers = max(2, round(parameters / (12 * hidden * hidden)))
    return Shape(parameters, layers, hidden, max(1, hidden // 128), max(1, hidden // 512), 128, 8192, known=False)


def fit(spec: StageSpec, shape: Shape, devices: int, trains: bool) -> Fit:
    """Estimate the memory of a stage on each of `devices` devices (0: on the CPU)."""
    shards = max(1, spec.model.vllm.tensor_parallel_size if spec.model.vllm and not trains else 1)
    width = _BYTES.get(_dtype(spec, devices), 2)
    weights = shape.parameters * (_quantised(spec) or width) / shards
    band = 0.2 if shape.known else 0.5
    if trains:
        return _training(spec, shape, weights, width, band)
    length = (spec.model.vllm.max_model_len if spec.model.vllm else None) or min(
        shape.context, spec.inference.max_tokens + 1024
    )
    rows = spec.model.transformers.batch_size if spec.model.transformers else 8
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * width * length * rows / shards
    return Fit(int(weights), int(cache), 0, int(rows * length * shape.hidden * width), band)


def _training(spec: StageSpec, shape: Shape, weights: float, width: int, band: float) -> Fit:
    training = spec.training
    adapter = (
        spec.task_type == "lora_sft"
        or spec.lora is not None
        or (spec.model.adapter is not None and spec.model.adapter.type != "full")
    )
    rank = spec.lora.r if spec.lora else (spec.model.adapter.r if spec.model.adapter and spec.model.adapter.r else 16)
    trained = 2 * rank * shape.hidden * 7 * shape.layers if adapter else shape.parameters
    optimizer = trained * (8 + 4 + (4 if width == 2 else 0))
    length = training.max_seq_length or 1024
    tokens = length * training.per_device_train_batch_size * shape.hidden
    layers = 1 if training.gradient_checkpointing else shape.layers
    activations = layers * tokens * 34 * width / 2
    return Fit(int(weights), 0, int(optimizer), int(activations), band)


def _from_config(config: dict[str, Json], folder: Path) -> Shape:
    hidden = int(config.get("hidden_size") or config.get("n_embd") or 0)
    layers = int(config.get("num_hidden_layers") or config.get("n_layer") or 0)
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 1)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    head_dim = int(config.get("head_dim") or (hidden // max(heads, 1)))
    inner = int(config.get("intermediate_size") or 4 * hidden)
    vocabulary = int(config.get("vocab_size") or 0)
    tied = 1 if config.get("tie_word_embeddings") else 2
    block = hidden * head_dim * (2 * heads + 2 * kv_heads) + 3 * hidden * inner + 2 * hidden
    parameters = _stored_parameters(folder, config) or layers * block + tied * vocabulary * hidden + hidden
    context = int(config.get("max_position_embeddings") or config.get("n_positions") or 2048)
    return Shape(parameters, layers, hidden, heads, kv_heads, head_dim, context, known=True)


def _stored_parameters(folder: Path, config: dict[str, Json]) -> float | None:
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    width = _BYTES.get(str(config.get("dtype") or config.get("torch_dtype") or ""))
    return size / width if size and width else None


def _quantised(spec: StageSpec) -> float | None:
    """Bytes of a weight that is loaded with 4 or 8 bits, scales included."""
    loaded, adapter = spec.model.transformers, spec.model.adapter
    if (loaded and loaded.load_in_4bit) or (adapter and adapter.type == "qlora" and spec.task_type == "lora_sft"):
        return 0.5625  # an NF4 weight, and a float32 scale for each block of 64 (Dettmers et al. 2023, QLoRA, §3)
    return 1.0 if loaded and loaded.load_in_8bit else None


def _dtype(spec: StageSpec, devices: int) -> str:
    named = (spec.model.vllm and spec.model.vllm.dtype) or (spec.model.transformers and spec.model.transformers.dtype)
    if named:
        return named
    if spec.model.config.bf16 or spec.model.config.fp16 or spec.training.bf16 or spec.training.fp16:
        return "bf16"
    return "bf16" if devices else "float32"
