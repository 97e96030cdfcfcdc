"""What `spec.training` becomes: each key changes what it says, or is warned about."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from executors.base import ExecutorError
from executors.training.arguments import Arguments, trainer_arguments
from mloc_dagster.spec.training import Training
from tests.executors.conftest import MakeJob, result_of, run_host


def arguments(tmp_path: Path, on_gpu: bool = False, **training: Any) -> Arguments:
    from trl.trainer.sft_config import SFTConfig

    section = Training.model_validate(training)
    return trainer_arguments(section, SFTConfig, checkpoints=tmp_path / "checkpoints", on_gpu=on_gpu)


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("num_train_epochs", 2.0, "num_train_epochs"), ("max_steps", 7, None),
        ("per_device_train_batch_size", 3, None), ("gradient_accumulation_steps", 5, None),
        ("learning_rate", "2e-4", "learning_rate"), ("warmup_steps", 4.0, None), ("weight_decay", 0.1, None),
        ("logging_steps", 3, None), ("max_seq_length", 99, "max_length"), ("packing", True, None),
        ("gradient_checkpointing", True, None), ("seed", 5, None), ("max_grad_norm", 0.5, None),
        ("ddp_find_unused_parameters", True, None), ("lr_scheduler_type", "constant", None),
    ],
)  # fmt: skip
def test_keys_reach_the_trainer(tmp_path: Path, key: str, value: Any, name: str | None) -> None:
    values = arguments(tmp_path, **{key: value}).values
    assert values[name or key] == (float(value) if key == "learning_rate" else value)


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ExecutorError, match="lerning_rate") as error:
        arguments(tmp_path, lerning_rate=1)
    assert "'learning_rate'" in error.value.hint


@pytest.mark.parametrize(
    "training", [{"bf16": True}, {"fp16": True}, {"fsdp": "full_shard"}, {"deepspeed": {}, "auto_deepspeed": True}]
)
def test_what_counts_on_a_gpu_only_is_told_on_a_cpu(tmp_path: Path, training: dict[str, Any]) -> None:
    found = arguments(tmp_path, **training)
    assert any("on a GPU" in warning for warning in found.warnings)
    assert found.values["use_cpu"] is True and not found.values["bf16"] and "fsdp" not in found.values


def test_deepspeed_and_fsdp_on_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExecutorError, match="deepspeed, which is not installed"):
        arguments(tmp_path, on_gpu=True, auto_deepspeed=True, bf16=False)
    monkeypatch.setattr("executors.training.arguments.find_spec", lambda name: object())
    values = arguments(tmp_path, on_gpu=True, auto_deepspeed=True, auto_deepspeed_stage=3, bf16=False).values
    assert values["deepspeed"]["zero_optimization"] == {"stage": 3}
    own = {"zero_optimization": {"stage": 1}}
    assert arguments(tmp_path, on_gpu=True, deepspeed=own, bf16=False).values["deepspeed"] == own
    fsdp = arguments(tmp_path, on_gpu=True, fsdp="full_shard", fsdp_config={"limit_all_gathers": True}, bf16=False)
    assert fsdp.values["fsdp"] == "full_shard" and fsdp.values["fsdp_config"] == {"limit_all_gathers": True}
    with pytest.raises(ExecutorError, match="both deepspeed and fsdp"):
        arguments(tmp_path, on_gpu=True, fsdp="full_shard", deepspeed=own, bf16=False)


def test_an_absent_tracker_is_told(tmp_path: Path) -> None:
    found = arguments(tmp_path, log_with=["swanlab"])
    assert found.values["report_to"] == "none"
    assert found.warnings == ("training.log_with: swanlab is not installed here, so nothing is sent to it",)


def test_projects_and_places_of_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executors.training.trackers.find_spec", lambda name: object())
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_DIR", "/elsewhere")
    found = arguments(tmp_path, log_with=["mlflow", "wandb"], tracker_project_name="p")
    assert found.values["report_to"] == ["mlflow", "wandb"]
    assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/mlflow.db"
    assert os.environ["MLFLOW_EXPERIMENT_NAME"] == os.environ["WANDB_PROJECT"] == "p"
    assert os.environ["WANDB_DIR"] == "/elsewhere"


@pytest.mark.slow
def test_tensorboard_gets_the_losses(job: MakeJob) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    training = {"max_steps": 4, "logging_steps": 1, "log_with": "tensorboard", "per_device_train_batch_size": 2}
    one = job("sft", {"data": {"prompts": [{"prompt": "a", "response": "b"}]}, "training": training})
    code, output = run_host(one)
    assert code == 0, output
    events = EventAccumulator(str(one.out / "tensorboard")).Reload()
    told = {line["step"]: line["loss"] for line in result_of(one)["payload"]["log_history"] if "loss" in line}
    assert {e.step: pytest.approx(e.value, rel=1e-4) for e in events.Scalars("train/loss")} == told
    assert len(told) == 4
