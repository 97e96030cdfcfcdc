"""Loads the weights that a trainer starts from."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM

from executors.base import ExecutorError
from executors.context import TaskContext
from executors.training.devices import training_dtype
from executors.training.lora import quantization, unused_settings
from executors.weights import Start, trusts_code
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.model import Lora


def load_model(
    ctx: TaskContext, start: Start, lora: Lora | None, gpu: bool, kind: Any = AutoModelForCausalLM, **arguments: Json
) -> tuple[Any, list[str]]:
    """Load the starting weights; an adapter that a checkpoint names is trained on, or merged for full training.

    `kind` is the auto class of transformers and `arguments` are its own. Returns the model and warnings; raises
    ExecutorError when the weights cannot be loaded so.
    """
    quantized, warnings = quantization(ctx, gpu, lora)
    if ctx.spec.lora is not None and lora is None:
        warnings.append("lora is not used: model.adapter.type is full")
    if ctx.spec.model.config.device_map_auto:
        warnings.append("model.config.device_map_auto is not used: a process trains on one device")
    arguments |= {"dtype": training_dtype(ctx, gpu, lora is not None)} | _attention(ctx, gpu, warnings)
    if quantized:
        arguments |= {
            "quantization_config": quantized,
            "device_map": {"": torch.cuda.current_device() if gpu else "cpu"},
        }
    try:
        model = kind.from_pretrained(start.model, trust_remote_code=trusts_code(ctx), **arguments)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ExecutorError(
            f"The model {start.model} cannot be loaded: {str(error).splitlines()[0]}",
            "Remote code runs only if trust_remote_code is set and the deployment allows it."
            if "trust_remote_code" in str(error)
            else "Check model.source and model.transformers.",
        ) from error
    if quantized:
        checkpointing = ctx.spec.training.gradient_checkpointing
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    if start.adapter and lora:
        model = PeftModel.from_pretrained(model, str(start.adapter), is_trainable=True)
        warnings += unused_settings(lora, model.peft_config["default"])
    elif start.adapter:
        model = PeftModel.from_pretrained(model, str(start.adapter)).merge_and_unload(safe_merge=True)
        model.requires_grad_(True)  # PEFT froze them
    return model, warnings


def _attention(ctx: TaskContext, gpu: bool, warnings: list[str]) -> dict[str, Json]:
    given = ctx.spec.model.transformers
    if given is None:
        return {}
    if given.use_flash_attention_2 and not gpu:
        warnings.append("model.transformers.use_flash_attention_2 counts only on a GPU")
    flash = given.use_flash_attention_2 and gpu
    asked = given.attn_implementation or ("flash_attention_2" if flash else None)
    return {"attn_implementation": asked} if asked else {}
