"""GPU-hours against sums done by hand."""

from __future__ import annotations

from typing import Any

import pytest

from mloc_dagster.plan.estimate import gpu_hours
from mloc_dagster.plan.memory import Shape
from mloc_dagster.spec.stage import StageSpec

SHAPE = Shape(8e9, 32, 4096, 32, 8, 128, 8192, known=True)


def spec_of(gpu: dict[str, Any] | None = None, replicas: int = 1, **keys: Any) -> StageSpec:
    hardware = {"gpu": gpu} if gpu else {}
    resources = {"replicas": replicas, "hardware": hardware}
    return StageSpec.model_validate({"task_type": "sft", "resources": resources, **keys})


A100 = {"type": "NVIDIA A100-SXM4-80GB"}


def test_training_is_six_operations_a_parameter_and_token() -> None:
    training = {"num_train_epochs": 3, "max_seq_length": 1000}
    hours = gpu_hours(spec_of(A100, training=training), SHAPE, rows=10_000, trains=True)
    assert hours == pytest.approx(6 * 8e9 * 3e7 / (312e12 * 0.35) / 3600)


def test_steps_count_all_rows_of_all_devices() -> None:
    training = {"max_steps": 100, "batch_size": 4, "gradient_accumulation_steps": 2, "max_seq_length": 512}
    keys = {"training": {**training, "per_device_train_batch_size": training.pop("batch_size")}}
    one = gpu_hours(spec_of(A100, **keys), SHAPE, rows=None, trains=True)
    four = gpu_hours(spec_of({**A100, "count": 2}, replicas=2, **keys), SHAPE, rows=None, trains=True)
    assert one == pytest.approx(6 * 8e9 * 100 * 8 * 512 / (312e12 * 0.35) / 3600)
    assert four == pytest.approx(4 * one)


def test_generation_is_two_operations_for_what_is_read_and_written() -> None:
    spec = spec_of(A100, inference={"max_tokens": 488, "n": 2})
    hours = gpu_hours(spec, SHAPE, rows=500, trains=False)
    assert hours == pytest.approx(2 * 8e9 * 500 * 1000 * 2 / (312e12 * 0.1) / 3600)


def test_a_faster_gpu_needs_less_and_an_unknown_one_something() -> None:
    hours = [gpu_hours(spec_of({"type": name}), SHAPE, 1000, True) for name in ("t4", "a100", "h100-80gb", "any")]
    assert all(hours) and hours[0] > hours[3] > hours[1] > hours[2]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("gpu", "rows", "trains"), [(None, 10, True), ({"count": 0}, 10, True), (A100, None, True), (A100, None, False)]
)
def test_what_is_not_known_is_not_guessed(gpu: dict[str, Any] | None, rows: int | None, trains: bool) -> None:
    assert gpu_hours(spec_of(gpu), SHAPE, rows, trains) is None
