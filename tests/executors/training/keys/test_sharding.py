"""Keys of precision and of spread weights: what arrives on a GPU, and what a CPU tells instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.reward_config import RewardConfig
from trl.trainer.sft_config import SFTConfig

from executors.training.arguments import Arguments, trainer_arguments
from executors.training.devices import with_precision
from executors.training.ppo.settings import PPOConfig
from tests.executors.context_of import context_of
from tests.executors.training.keys.files import loaded, with_keys
from tests.executors.training.keys.table import DPO, GRPO, LORA_SFT, PPO, REWARD, SFT, SHARDED, TRAINERS

CONFIG = {SFT: SFTConfig, LORA_SFT: SFTConfig, REWARD: RewardConfig, DPO: DPOConfig, GRPO: GRPOConfig, PPO: PPOConfig}
OWN = {"zero_optimization": {"stage": 1}}


@pytest.fixture(autouse=True)
def everything_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that knows bfloat16, and DeepSpeed."""
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    monkeypatch.setattr("executors.training.arguments.find_spec", lambda name: object())


def arguments(tmp_path: Path, trainer: str, *, on_gpu: bool = True, **given: Any) -> Arguments:
    """What a file with these keys hands to the trainer."""
    keys = {name if "." in name else f"training.{name}": value for name, value in given.items()}
    raw = loaded(with_keys(trainer, keys)).stages[0].raw
    training = with_precision(context_of(tmp_path, raw))
    return trainer_arguments(training, CONFIG[trainer], checkpoints=tmp_path / "checkpoints", on_gpu=on_gpu)


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (True, False)),
        ({"fp16": True}, (False, True)),
        ({"bf16": True}, (True, False)),
        ({"bf16": False}, (False, False)),
        ({"model.config.fp16": True}, (False, True)),
        ({"model.config.bf16": False}, (False, False)),
        ({"model.config.fp16": True, "bf16": True}, (True, False)),
    ],
)
def test_precision_counts_on_a_gpu(tmp_path: Path, trainer: str, given: Any, expected: tuple[bool, bool]) -> None:
    values = arguments(tmp_path, trainer, **given).values
    assert (values["bf16"], values["fp16"]) == expected


@pytest.mark.parametrize("trainer", SHARDED)
@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        ({"deepspeed": OWN}, "deepspeed", OWN),
        ({"fsdp": "full_shard"}, "fsdp", "full_shard"),
        ({"fsdp": True, "fsdp_config": {"limit_all_gathers": True}}, "fsdp_config", {"limit_all_gathers": True}),
    ],
)
def test_what_spreads_the_weights_arrives(tmp_path: Path, trainer: str, given: Any, name: str, expected: Any) -> None:
    assert name not in arguments(tmp_path, trainer).values
    assert arguments(tmp_path, trainer, **given).values[name] == expected
    if name == "deepspeed":
        for asked, stage in ((None, 2), (3, 3)):
            more = {} if asked is None else {"training.auto_deepspeed_stage": asked}
            found = arguments(tmp_path, trainer, **{"auto_deepspeed": True, **more}).values[name]
            assert found["zero_optimization"] == {"stage": stage}


@pytest.mark.parametrize("trainer", SHARDED)
@pytest.mark.parametrize(
    "given",
    [{"bf16": True}, {"fp16": True}, {"deepspeed": OWN}, {"fsdp": "full_shard", "fsdp_config": {"x": 1}},
     {"auto_deepspeed": True, "auto_deepspeed_stage": 1}],
)  # fmt: skip
def test_on_a_cpu_it_is_told(tmp_path: Path, trainer: str, given: dict[str, Any]) -> None:
    found = arguments(tmp_path, trainer, on_gpu=False, **given)
    (told,) = (warning for warning in found.warnings if "counts only on a GPU" in warning)
    assert all(f"training.{key}" in told for key in given)
    assert not found.values["bf16"] and not found.values["fp16"] and not {"deepspeed", "fsdp"} & set(found.values)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"max_steps": 2, "num_train_epochs": 1}, "num_train_epochs is not used: max_steps is given"),
        ({"save_strategy": "epoch", "save_steps": 5}, "save_steps is not used: save_strategy is epoch"),
        ({"save_strategy": "no", "save_total_limit": 1}, "save_total_limit is not used: save_strategy is no"),
        ({"auto_deepspeed_stage": 1}, "auto_deepspeed_stage is not used: auto_deepspeed is not true"),
        ({"deepspeed": OWN, "auto_deepspeed": True}, "auto_deepspeed is not used: deepspeed is given"),
        ({"deepspeed": {}}, "deepspeed is not used: it is empty"),
        ({"fsdp_config": {"x": 1}}, "fsdp_config is not used: fsdp is not given"),
        ({"tracker_project_name": "p"}, "tracker_project_name is not used: log_with names no tracker"),
        (
            {"tracker_project_name": "p", "log_with": "tensorboard"},
            "tracker_project_name is not used: tensorboard knows no projects",
        ),
        ({"report_to": "wandb"}, "report_to is not used: write training.log_with"),
        ({"eval_steps": 3}, "eval_steps is not used: no rows are set aside"),
        ({"push_to_hub": True}, "push_to_hub is not used: write output.destination"),
        ({"resume_from_checkpoint": "/x"}, "resume_from_checkpoint is not used: write training.resume_from_path"),
    ],
)
def test_what_another_key_makes_idle_is_told(tmp_path: Path, given: dict[str, Any], told: str) -> None:
    found = arguments(tmp_path, SFT, **given)
    assert [warning for warning in found.warnings if warning.startswith(f"training.{told}")]
    assert found.values["report_to"] in ("none", ["tensorboard"]) and not found.values["push_to_hub"]
    assert not {"eval_steps", "resume_from_checkpoint", "fsdp_config"} & set(found.values)


def test_nothing_is_told_of_keys_that_work(tmp_path: Path) -> None:
    given = {"max_steps": 2, "save_steps": 1, "save_total_limit": 1, "bf16": True, "adam_beta2": 0.9}
    found = arguments(tmp_path, SFT, **given)
    assert found.warnings == () and found.values["adam_beta2"] == 0.9
