"""Estimated GPU-hours of a stage.

Training costs 6 · parameters · tokens floating-point operations and generation 2 · parameters · tokens (Kaplan et al.
2020, "Scaling Laws for Neural Language Models", §2.1), at a utilisation that such jobs usually reach.
"""

from __future__ import annotations

from mloc_dagster.plan.memory import Shape
from mloc_dagster.spec.gpu import normalise
from mloc_dagster.spec.stage import StageSpec

_PEAK_TFLOPS = {
    "t4": 65,
    "l4": 121,
    "a10": 125,
    "a10g": 125,
    "a100": 312,
    "l40": 181,
    "l40s": 362,
    "h100": 989,
    "h200": 989,
    "b200": 2250,
}
"""Dense 16-bit TFLOP/s (vendor data sheets)."""
_TRAINING_UTILISATION = 0.35
_GENERATION_UTILISATION = 0.1
_TOKENS_A_ROW = 512
_UNKNOWN_GPU_TFLOPS = 150


def gpu_hours(spec: StageSpec, shape: Shape, rows: int | None, trains: bool) -> float | None:
    """Return GPU-hours, or None when the number of rows or steps isn't known or no GPU is asked for."""
    gpu = spec.resources.hardware.gpu
    if gpu is None or gpu.count == 0:
        return None
    peak = _PEAK_TFLOPS.get(normalise(gpu.type).split("-")[0], _UNKNOWN_GPU_TFLOPS) * 1e12
    if trains:
        training = spec.training
        batch = (
            training.per_device_train_batch_size
            * training.gradient_accumulation_steps
            * gpu.count
            * spec.resources.replicas
        )
        length = training.max_seq_length or _TOKENS_A_ROW
        if training.max_steps and training.max_steps > 0:
            tokens = training.max_steps * batch * length
        elif rows is not None:
            tokens = training.num_train_epochs * rows * length
        else:
            return None
        return 6 * shape.parameters * tokens / (peak * _TRAINING_UTILISATION) / 3600
    if rows is None:
        return None
    tokens = rows * (spec.inference.max_tokens + _TOKENS_A_ROW) * spec.inference.n
    return 2 * shape.parameters * tokens / (peak * _GENERATION_UTILISATION) / 3600
