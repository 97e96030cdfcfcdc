"""Keys of the trainers' config classes that are not theirs to decide here, and keys that have no effect beside others.

Each is named in a warning, and what is said elsewhere is not handed on.
"""

from __future__ import annotations

from collections.abc import Mapping

from mloc_dagster.spec.base import Json
from mloc_dagster.spec.training import Training

_NO_ROWS = "no rows are set aside to evaluate on; add a stage of taskType evaluation"
_HUB = "write output.destination: {type: huggingface, repo_id: …}"
_INSTEAD = {
    "report_to": "write training.log_with",
    "project": "write training.tracker_project_name",
    "resume_from_checkpoint": "write training.resume_from_path",
    "use_cpu": "write enforce_cpu",
    "trust_remote_code": "write model.source.trust_remote_code",
    "model_init_kwargs": "write model.transformers",
    "dataset_text_field": "write data.text_field",
    "disable_tqdm": "progress is shown by the platform",
    "local_rank": "processes are started by training.nproc_per_node",
    "do_train": "a training stage always trains",
    "do_predict": "add a stage of taskType inference",
}
_BEGINNINGS = {"eval_": _NO_ROWS, "hub_": _HUB, "push_to_hub": _HUB}
_EVALUATION = (
    "do_eval", "per_device_eval_batch_size", "batch_eval_metrics", "metric_for_best_model", "greater_is_better",
    "load_best_model_at_end", "num_generations_eval", "bf16_full_eval", "fp16_full_eval", "prediction_loss_only",
    "include_for_metrics", "label_names",
)  # fmt: skip


def without_those_said_elsewhere(extra: Mapping[str, Json]) -> tuple[dict[str, Json], list[str]]:
    """The keys that a trainer gets, and a warning for each other one."""
    reasons = {key: reason for key in extra if (reason := _reason(key))}
    warnings = [f"training.{key} is not used: {reason}" for key, reason in reasons.items()]
    return {key: value for key, value in extra.items() if key not in reasons}, warnings


def without_effect(training: Training) -> list[str]:
    """Warnings for keys that are given, but which another key of `spec.training` makes idle."""
    given = training.model_fields_set
    strategy = training.save_strategy
    idle = {
        "num_train_epochs": "max_steps is given" if training.max_steps is not None else "",
        "save_steps": f"save_strategy is {strategy}" if strategy in ("no", "epoch") else "",
        "save_total_limit": "save_strategy is no" if strategy == "no" else "",
        "deepspeed": "it is empty" if training.deepspeed == {} else "",
        "auto_deepspeed": "deepspeed is given" if training.auto_deepspeed and training.deepspeed else "",
        "auto_deepspeed_stage": _idle_stage(training),
        "fsdp_config": "" if training.fsdp else "fsdp is not given",
    }
    return [
        f"training.{key} is not used: {reason}"
        for key, reason in idle.items()
        if reason and key in given and getattr(training, key) is not None
    ]


def _reason(key: str) -> str | None:
    if key in _EVALUATION:
        return _NO_ROWS
    return _INSTEAD.get(key) or next((text for start, text in _BEGINNINGS.items() if key.startswith(start)), None)


def _idle_stage(training: Training) -> str:
    if training.deepspeed:
        return "deepspeed is given"
    return "" if training.auto_deepspeed else "auto_deepspeed is not true"
