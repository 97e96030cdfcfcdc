"""Loads the weights that a trainer starts from."""

from __future__ import annotations

from typing import Any

from peft import PeftModel, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM

from executors.base import ExecutorError
from executors.context import TaskContext
from executors.training.devices import training_dtype
from executors.training.lora import quantization
from executors.weights import Start, trusts_code
from mloc_dagster.spec.model import Lora


def load_model(ctx: TaskContext, start: Start, lora: Lora | None, gpu: bool) -> tuple[Any, list[str]]:
    """Load the starting weights; an adapter that a checkpoint names is trained on, or merged for full training."""
    quantized, warnings = quantization(ctx, gpu)
    arguments: dict[str, Any] = {"quantization_config": quantized, "device_map": {"": 0}} if quantized else {}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            start.model,
            dtype=training_dtype(ctx, gpu, lora is not None),
            trust_remote_code=trusts_code(ctx),
            **arguments,
        )
    except (OSError, ValueError) as error:
        raise ExecutorError(
            f"The model {start.model} cannot be loaded: {str(error).splitlines()[0]}",
            "Remote code runs only if trust_remote_code is set and the deployment allows it.",
        ) from error
    if quantized:
        model = prepare_model_for_kbit_training(model)
    if start.adapter and lora:
        model = PeftModel.from_pretrained(model, str(start.adapter), is_trainable=True)
    elif start.adapter:
        model = PeftModel.from_pretrained(model, str(start.adapter)).merge_and_unload(safe_merge=True)
    return model, warnings
