"""The registry is cheap, and every class says truly what it reads."""

from __future__ import annotations

import subprocess
import sys

import pytest

from executors.base import Executor
from executors.registry import BUILT_IN, find, names
from executors.training.sft import TRAINING_OF_OTHERS, SftExecutor
from mloc_dagster.spec.task_types import known
from mloc_dagster.spec.training import Training
from tests.executors.conftest import ENVIRONMENT


def test_reading_what_executors_use_loads_no_heavy_library() -> None:
    script = (
        "import sys, executors.host; from executors.registry import find, names; [find(n).uses for n in names()]; "
        "heavy = ('torch', 'transformers', 'trl', 'peft', 'datasets', 'vllm', 'dagster', 'numpy'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_built_in_classes_keep_the_contract(name: str) -> None:
    executor = find(name)
    assert executor.name == name and name in names()
    assert isinstance(executor(), Executor)
    assert executor.uses


def test_every_typed_training_key_is_used_or_left_to_others() -> None:
    used = {key.removeprefix("training.") for key in SftExecutor.uses if key.startswith("training.")}
    assert used | TRAINING_OF_OTHERS == set(Training.model_fields)
    assert not used & TRAINING_OF_OTHERS


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_validation_and_executors_agree_on_the_training_keys(name: str) -> None:
    def of_training(keys: frozenset[str]) -> set[str]:
        return {key for key in keys if key.startswith("training.")}

    assert of_training(find(name).uses) == of_training(known()[name].uses)
