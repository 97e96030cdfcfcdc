"""Adapters from `spec.lora` or the older `model.adapter`: LoRA, QLoRA, AdaLoRA; and quantized base weights."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from peft import AdaLoraConfig, LoraConfig

from executors.base import ExecutorError
from executors.context import TaskContext
from executors.training.adalora import start_rank
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.model import Lora


def adapter_of(ctx: TaskContext) -> Lora | None:
    """The settings of the adapter where `lora` or `model.adapter` asks for one; None: all weights are trained."""
    adapter = ctx.spec.model.adapter
    wanted = ctx.spec.lora is not None if adapter is None else adapter.type != "full"
    return lora_settings(ctx) if wanted else None


def lora_settings(ctx: TaskContext) -> Lora:
    """`spec.lora`, with what `model.adapter` says where `spec.lora` is silent; defaults otherwise."""
    older, lora = ctx.spec.model.adapter, ctx.spec.lora
    given = {} if older is None else older.model_dump(exclude_none=True, exclude={"type"})
    renamed = {{"lora_alpha": "alpha", "lora_dropout": "dropout"}.get(key, key): value for key, value in given.items()}
    explicit = {} if lora is None else lora.model_dump(include=lora.model_fields_set)
    return Lora.model_validate(renamed | explicit)


def adapter_config(ctx: TaskContext, lora: Lora) -> LoraConfig:
    """PEFT's configuration of the method that `model.adapter.type` names; LoRA where it is silent.

    Raises ExecutorError for settings that the method does not have, and for those that PEFT refuses.
    """
    adapter = ctx.spec.model.adapter
    try:
        return _adalora_config(lora) if adapter is not None and adapter.type == "adalora" else lora_config(lora)
    except ValueError as error:
        raise ExecutorError(f"PEFT refuses spec.lora: {error}", "Mend the key.") from error


def lora_config(lora: Lora) -> LoraConfig:
    """PEFT's configuration. Without target modules every linear layer but the head is adapted."""
    return LoraConfig(r=lora.r, use_rslora=lora.use_rslora, **_shared(lora))


def _adalora_config(lora: Lora) -> AdaLoraConfig:
    """`r` is the average rank at the end. The steps of the schedule are known when training begins (`AdaLora`)."""
    if lora.use_rslora:
        raise ExecutorError(
            "lora.use_rslora is true, but AdaLoRA has its own scaling.",
            "Remove the key, or write model.adapter.type: lora.",
        )
    return AdaLoraConfig(target_r=lora.r, init_r=start_rank(lora.r), total_step=1, **_shared(lora))


def _shared(lora: Lora) -> dict[str, Any]:
    return {
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "bias": lora.bias,
        "target_modules": lora.target_modules or "all-linear",
        "task_type": lora.task_type,
    }


def unused_settings(lora: Lora, kept: Any) -> list[str]:
    """Warnings for settings that an adapter which is trained on does not take: it keeps its own (`kept`, PEFT's)."""
    own = {
        "r": kept.target_r if isinstance(kept, AdaLoraConfig) else kept.r,
        "alpha": kept.lora_alpha,
        "dropout": kept.lora_dropout,
        "bias": kept.bias,
        "target_modules": kept.target_modules,
        "task_type": str(getattr(kept.task_type, "value", kept.task_type)),
        "use_rslora": kept.use_rslora,
    }
    return [
        f"lora.{key} {_plain(getattr(lora, key))} is not used: the adapter of checkpoint.load has {_plain(has)}"
        for key, has in own.items()
        if key in lora.model_fields_set and _plain(getattr(lora, key)) not in (_plain(has), "all-linear")
    ]


def _plain(value: Json) -> Json:
    return sorted(value) if isinstance(value, list | set) else value


def quantization(ctx: TaskContext, gpu: bool, lora: Lora | None) -> tuple[Any, list[str]]:
    """How the base weights are quantized, or None, and warnings.

    `qlora` and `model.transformers.load_in_4bit` mean 4 bits (Dettmers et al. 2023: NF4, double quantization),
    `load_in_8bit` 8 bits (Dettmers et al. 2022: LLM.int8). Raises ExecutorError where that cannot work.
    """
    bits, key = _bits(ctx)
    if bits is None:
        return None, []
    if lora is None:
        raise ExecutorError(
            f"{key} asks for weights of {bits} bits, which cannot be trained themselves.",
            "Add lora: {r: 16}, so that an adapter is trained on them, or remove the key.",
        )
    if find_spec("bitsandbytes") is None:
        return _without_bitsandbytes(key, bits, gpu)
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True), []
    compute = "bfloat16" if gpu else "float32"
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    ), []


def _bits(ctx: TaskContext) -> tuple[int | None, str]:
    """The width that is asked for and the key that asks."""
    adapter, transformers = ctx.spec.model.adapter, ctx.spec.model.transformers
    four, eight = bool(transformers and transformers.load_in_4bit), bool(transformers and transformers.load_in_8bit)
    if adapter is not None and adapter.type == "qlora":
        if eight:
            raise ExecutorError(
                "model.adapter.type qlora means 4 bits, but model.transformers.load_in_8bit is true.", "Keep one."
            )
        return 4, "model.adapter.type qlora"
    if four and eight:
        raise ExecutorError("model.transformers says load_in_4bit and load_in_8bit.", "Keep one of them.")
    if four or eight:
        return (4, "model.transformers.load_in_4bit") if four else (8, "model.transformers.load_in_8bit")
    return None, ""


def _without_bitsandbytes(key: str, bits: int, gpu: bool) -> tuple[None, list[str]]:
    if gpu:
        raise ExecutorError(f"{key} needs bitsandbytes, which is not installed here.", "Run: pip install bitsandbytes")
    return None, [
        f"{key}: weights of {bits} bits need bitsandbytes, which is not installed here; "
        "on this CPU a LoRA adapter was trained on unquantized weights"
    ]
