"""The table of keys is complete, and what it names is there; a key that a trainer does not read is told."""

from __future__ import annotations

import inspect
from functools import cache
from importlib import import_module

import pytest
from pydantic import BaseModel

from mloc_dagster.spec.canonical import spellings
from mloc_dagster.spec.model import CheckpointLoad, Lora, RewardModel
from mloc_dagster.spec.training import Generation, Training
from tests.executors.training.keys.files import loaded, with_keys
from tests.executors.training.keys.table import CELLS, SECTIONS, TRAINERS, Key, key_of

MODELS: dict[str, type[BaseModel]] = {
    "training": Training, "lora": Lora, "reward_model": RewardModel, "generation": Generation,
    "checkpoint.load": CheckpointLoad,
}  # fmt: skip
SPEC_9 = {
    "training": "num_train_epochs max_steps steps batch_size per_device_train_batch_size gradient_accumulation_steps "
    "learning_rate warmup_steps weight_decay logging_steps save_steps save_freq save_strategy save_total_limit "
    "save_model max_seq_length packing fp16 bf16 gradient_checkpointing seed max_grad_norm resume_from_path beta "
    "target_kl kl_coef ppo_epochs mini_batch_size num_mini_batches early_stopping allow_multi_gpu visible_devices "
    "primary_gpu nproc_per_node deepspeed auto_deepspeed auto_deepspeed_stage fsdp fsdp_config "
    "ddp_find_unused_parameters log_with tracker_project_name",
    "lora": "r alpha dropout bias target_modules task_type use_rslora",
    "reward_model": "identifier type scale max_length positive_label negative_label",
    "generation": "max_new_tokens temperature top_p stop do_sample",
    "checkpoint.load": "type path uri taskId url filename headers timeoutSec archive_format subdir task_id "
    "download_url worker_path",
}
"""The names as the task language gives them."""


@pytest.mark.parametrize("section", SPEC_9)
def test_the_language_the_types_and_the_table_name_the_same_keys(section: str) -> None:
    named = {name for key, entry in SECTIONS[section].items() for name in (key, *entry.also)}
    assert set(SPEC_9[section].split()) <= named
    assert set(MODELS[section].model_fields) == set(SECTIONS[section])
    assert set(spellings(MODELS[section])) == named  # pyright: ignore[reportArgumentType]
    for key, entry in SECTIONS[section].items():
        assert all(spellings(MODELS[section])[name] == key for name in entry.also)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("dotted", "trainer"), CELLS)
def test_each_key_is_proven_for_each_trainer(dotted: str, trainer: str) -> None:
    """By an argument or a test where it is read; else the file's warning names it."""
    key = key_of(dotted)
    told = any(f"{place}.".startswith(f"spec.{dotted}.") for place in unread_in_a_file_of_all_keys(trainer))
    if trainer in key.read_by:
        assert not told and (key.argument or key.seen_by)
    else:
        assert told


@cache
def unread_in_a_file_of_all_keys(trainer: str) -> set[str]:
    """The keys that validation says are not used."""
    given = {f"{section}.{name}": key.value for section, keys in SECTIONS.items() for name, key in keys.items()}
    return {fault.path for fault in loaded(with_keys(trainer, given)).warnings if "is not used by" in fault.what}


@pytest.mark.parametrize("dotted", sorted({dotted for dotted, _ in CELLS}))
def test_the_tests_that_observe_a_key_are_there_and_speak_of_it(dotted: str) -> None:
    key = key_of(dotted)
    for place in key.seen_by:
        name, _, test = place.partition("::")
        module = import_module(f"tests.executors.{name}")
        assert callable(getattr(module, test)), place
        assert any(spelling in inspect.getsource(module) for spelling in _spellings(dotted, key)), place


def _spellings(dotted: str, key: Key) -> tuple[str, ...]:
    return (dotted.rpartition(".")[2], *key.also)


@pytest.mark.parametrize("dotted", sorted({dotted for dotted, _ in CELLS if key_of(dotted).also}))
def test_every_spelling_is_one_key(dotted: str) -> None:
    key, (*sections, name) = key_of(dotted), dotted.split(".")
    found = []
    for spelling in (name, *key.also):
        given = {"checkpoint.load.url": "http://x"} if sections[0] == "checkpoint" and name != "url" else {}
        value = loaded(with_keys(TRAINERS[0], given | {".".join((*sections, spelling)): key.value})).stages[0].spec
        for part in (*sections, name):
            value = getattr(value, part)
        found.append(value)
    assert found == [found[0]] * len(found) and found[0] is not None


def test_trainers_are_all_that_train() -> None:
    from mloc_dagster.spec.task_types import BUILT_IN

    assert {name for name, one in BUILT_IN.items() if one.trains} == set(TRAINERS)
