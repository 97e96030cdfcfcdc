"""Keys that say how many processes train, and on which devices, for each trainer."""

from __future__ import annotations

from typing import Any

import pytest

from executors.distributed.layout import Layout, layout_of
from mloc_dagster.spec.stage import StageSpec
from tests.executors.training.keys.files import loaded, with_keys
from tests.executors.training.keys.table import TRAINERS

DEVICES = ("4", "5", "6", "7")


def layout(trainer: str, key: str, value: Any, devices: tuple[str, ...] = DEVICES) -> Layout:
    """What a file with the one key asks for."""
    stage = loaded(with_keys(trainer, {f"training.{key}": value})).stages[0]
    return layout_of(StageSpec.model_validate(stage.raw), devices)


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize(
    ("key", "value", "processes", "devices"),
    [
        ("allow_multi_gpu", True, 4, DEVICES),
        ("allow_multi_gpu", False, 1, ("4",)),
        ("visible_devices", [1, 3], 2, ("5", "7")),
        ("primary_gpu", 2, 4, ("6", "4", "5", "7")),
        ("nproc_per_node", 2, 2, ("4", "5")),
    ],
)
def test_each_trainer_is_laid_out_as_asked(
    trainer: str, key: str, value: Any, processes: int, devices: tuple[str, ...]
) -> None:
    found = layout(trainer, key, value)
    assert (found.processes, found.devices) == (processes, devices)


@pytest.mark.parametrize("key", ["allow_multi_gpu", "visible_devices", "primary_gpu"])
def test_without_devices_they_are_told(key: str) -> None:
    assert layout(TRAINERS[0], key, 0 if key == "primary_gpu" else False, ()).warnings == (
        f"training.{key} counts only on a GPU",
    )
