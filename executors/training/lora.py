"""LoRA settings from `spec.lora` or the older `model.adapter`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from peft import LoraConfig

from executors.base import ExecutorError
from executors.context import TaskContext
from mloc_dagster.spec.model import Lora


def lora_settings(ctx: TaskContext) -> Lora:
    """`spec.lora`, with what `model.adapter` says where `spec.lora` is silent; defaults otherwise."""
    older, lora = ctx.spec.model.adapter, ctx.spec.lora
    if older is not None and older.type == "adalora":
        raise ExecutorError("model.adapter.type adalora is not supported yet.", "Use lora or qlora.")
    given = {} if older is None else older.model_dump(exclude_none=True, exclude={"type"})
    renamed = {{"lora_alpha": "alpha", "lora_dropout": "dropout"}.get(key, key): value for key, value in given.items()}
    explicit = {} if lora is None else lora.model_dump(include=lora.model_fields_set)
    return Lora.model_validate(renamed | explicit)


def lora_config(lora: Lora) -> LoraConfig:
    """PEFT's configuration. Without target modules every linear layer but the head is adapted."""
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        bias=lora.bias,
        target_modules=lora.target_modules or "all-linear",
        task_type=lora.task_type,
        use_rslora=lora.use_rslora,
    )


def quantization(ctx: TaskContext, gpu: bool) -> tuple[Any, list[str]]:
    """The 4-bit configuration of qlora (Dettmers et al. 2023: NF4, double quantization), and warnings."""
    adapter = ctx.spec.model.adapter
    if adapter is None or adapter.type != "qlora":
        return None, []
    if not gpu:
        return None, ["model.adapter.type qlora needs a GPU; plain LoRA was trained on the CPU"]
    if find_spec("bitsandbytes") is None:
        raise ExecutorError("model.adapter.type qlora needs bitsandbytes, which is not installed here.",
                            "Run: pip install bitsandbytes")  # fmt: skip
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16"
    ), []
