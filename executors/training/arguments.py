"""From `spec.training` to the arguments of a TRL trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from executors.base import ExecutorError
from executors.training.elsewhere import without_effect, without_those_said_elsewhere
from executors.training.trackers import tracking
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.training import Training

Config = TypeVar("Config")
_RENAMED = {"max_seq_length": "max_length"}
_HANDLED_HERE = {
    "save_steps", "save_strategy", "save_total_limit", "save_model", "resume_from_path", "output_dir", "log_with",
    "tracker_project_name", "allow_multi_gpu", "visible_devices", "primary_gpu", "nproc_per_node", "auto_deepspeed",
    "auto_deepspeed_stage", "deepspeed", "fsdp", "fsdp_config", "fp16", "bf16",
}  # fmt: skip
_SHARDING = ("deepspeed", "auto_deepspeed", "auto_deepspeed_stage", "fsdp", "fsdp_config")


@dataclass(frozen=True)
class Arguments:
    """Keyword arguments of the trainer's config class, and what could not be honoured."""

    values: Mapping[str, Any]
    warnings: tuple[str, ...]

    def build(self, config: type[Config]) -> Config:
        """Make the config; its own complaints about a value become an ExecutorError."""
        try:
            return config(**self.values)
        except (ValueError, TypeError) as error:
            raise ExecutorError(f"spec.training is refused by {config.__name__}: {error}.", "Mend the key.") from error


def trainer_arguments(
    training: Training, config: type, *, checkpoints: Path, on_gpu: bool, learning_rate: float | None = None
) -> Arguments:
    """Translate the typed section for a TRL config class.

    Keys that the language has and this trainer's class lacks (such as `beta` for SFT) are left out. Raises
    ExecutorError for a key that neither knows. `learning_rate` is the default when the file gives none. Saving is
    left to `executors.training.checkpoints`, progress to `executors.training.progress`.
    """
    known = {field.name for field in fields(config)}
    _refuse_unknown(training.model_extra or {}, known, config)
    extra, warnings = without_those_said_elsewhere(training.model_extra or {})
    warnings += without_effect(training)
    values: dict[str, Any] = {}
    for key in type(training).model_fields:
        value, name = getattr(training, key), _RENAMED.get(key, key)
        if key not in _HANDLED_HERE and value is not None and name in known:
            values[name] = value
    if training.learning_rate is None and learning_rate is not None:
        values["learning_rate"] = learning_rate
    values |= _precision(training, on_gpu, warnings)
    values |= _distribution(training, on_gpu, warnings)
    values |= tracking(training, known, checkpoints.parent, warnings)
    values |= extra
    values |= {"output_dir": str(checkpoints), "save_strategy": "no", "disable_tqdm": True, "push_to_hub": False}
    return Arguments(values, tuple(warnings))


def _refuse_unknown(extra: Mapping[str, Json], known: set[str], config: type) -> None:
    for key in extra:
        if key in known:
            continue
        near = get_close_matches(key, [*known, *Training.model_fields], n=1)
        guess = f"Did you mean {near[0]!r}?" if near else "Remove it."
        raise ExecutorError(f"spec.training.{key} is no key of the language and none of {config.__name__}.", guess)


def _precision(training: Training, on_gpu: bool, warnings: list[str]) -> dict[str, Any]:
    if not on_gpu:
        if training.fp16 or training.bf16:
            given = [key for key in ("fp16", "bf16") if getattr(training, key)]
            warnings.append(f"training.{', training.'.join(given)} counts only on a GPU; float32 was used")
        return {"use_cpu": True, "fp16": False, "bf16": False, "dataloader_pin_memory": False}
    import torch

    bf16 = torch.cuda.is_bf16_supported() and not training.fp16 if training.bf16 is None else training.bf16
    return {"bf16": bf16, "fp16": bool(training.fp16)}


def _distribution(training: Training, on_gpu: bool, warnings: list[str]) -> dict[str, Any]:
    """DeepSpeed and FSDP settings, as transformers takes them."""
    asked = [key for key in _SHARDING if getattr(training, key) not in (None, False)]
    if not on_gpu:
        if asked:
            warnings.append(f"training.{', training.'.join(asked)} counts only on a GPU")
        return {}
    deepspeed = training.deepspeed or (_zero(training) if training.auto_deepspeed else None)
    if deepspeed and training.fsdp:
        raise ExecutorError("training asks for both deepspeed and fsdp, which exclude each other.", "Remove one.")
    if deepspeed and find_spec("deepspeed") is None:
        raise ExecutorError("training.deepspeed needs deepspeed, which is not installed.", "Run: pip install deepspeed")
    fsdp = {"fsdp": training.fsdp, "fsdp_config": training.fsdp_config} if training.fsdp else {}
    given = {"deepspeed": deepspeed} | fsdp
    return {key: value for key, value in given.items() if value}


def _zero(training: Training) -> dict[str, Json]:
    """The smallest DeepSpeed configuration of a ZeRO stage (2 unless `auto_deepspeed_stage`); `auto` = the trainer's.

    Source: "DeepSpeed" in the documentation of transformers.
    """
    stage = 2 if training.auto_deepspeed_stage is None else training.auto_deepspeed_stage
    automatic = (
        "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    )  # fmt: skip
    precision = {"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}}
    return {"zero_optimization": {"stage": stage}, **precision, **dict.fromkeys(automatic, "auto")}
