"""Which device a trainer uses, and in what precision its weights are loaded."""

from __future__ import annotations

import torch

from executors.context import TaskContext
from mloc_dagster.spec.training import Training


def on_gpu(ctx: TaskContext) -> bool:
    """Whether a device was granted, is there, and `enforce_cpu` is not set."""
    return bool(ctx.devices) and not ctx.spec.enforce_cpu and torch.cuda.is_available()


def with_precision(ctx: TaskContext) -> Training:
    """`spec.training`, with the precision that `model.config` hints at where it says nothing itself."""
    training, hints = ctx.spec.training, ctx.spec.model.config
    if training.fp16 is not None or training.bf16 is not None:
        return training
    return training.model_copy(update={"fp16": hints.fp16, "bf16": hints.bf16})


def training_dtype(ctx: TaskContext, gpu: bool, adapter: bool) -> str:
    """The precision of the loaded weights.

    float32 where weights are trained, so that small updates are not rounded away. Under an adapter the frozen weights
    may be bfloat16 on a GPU. `model.transformers.dtype` decides where it is given.
    """
    given = ctx.spec.model.transformers and ctx.spec.model.transformers.dtype
    if given:
        return given.removeprefix("torch.")
    half = gpu and adapter and with_precision(ctx).bf16 is not False and torch.cuda.is_bf16_supported()
    return "bfloat16" if half else "float32"
