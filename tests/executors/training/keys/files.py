"""Task files of each trainer that say one key, or many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from mloc_dagster.spec import load_text
from mloc_dagster.spec.taskfile import TaskFile
from tests.executors.training.keys.table import GRPO, PPO, SAMPLING, SUPERVISED

PAIRS = [{"prompt": f"n{i}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(8)]


def data_of(trainer: str) -> dict[str, Any]:
    """Rows that the trainer can learn from."""
    if trainer in SUPERVISED:
        return {"prompts": [{"prompt": row["prompt"], "response": row["chosen"]} for row in PAIRS], "separator": ""}
    return {"prompts": [row["prompt"] for row in PAIRS]} if trainer in SAMPLING else {"preferences": PAIRS}


def spec_of(trainer: str, **sections: Any) -> dict[str, Any]:
    """The smallest spec that trains."""
    spec: dict[str, Any] = {"taskType": trainer, "model": {"source": {"type": "local", "identifier": "/tiny"}}}
    if trainer in (GRPO, PPO):
        spec["reward_model"] = {"type": "function", "identifier": "length"}
    return spec | {"data": data_of(trainer)} | sections


def with_keys(trainer: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with further keys, each written as `section.name`."""
    spec = spec_of(trainer)
    for dotted, value in given.items():
        *sections, name = dotted.split(".")
        inner = spec
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return spec


def loaded(spec: dict[str, Any]) -> TaskFile:
    """The spec as a file of its own, read and checked."""
    return load_text(yaml.safe_dump({"apiVersion": "mloc/v1", "metadata": {"name": "t"}, "spec": spec}))
