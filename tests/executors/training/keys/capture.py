"""What a file's keys become: a recipe runs up to the trainer that it would make, which is kept instead."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from executors.host import execute
from executors.job import Job
from mloc_dagster.spec.taskfile import TaskFile
from tests.executors.training.keys.table import DPO, GRPO, LORA_SFT, PPO, REWARD, SFT

_RECIPES = {SFT: "supervised", LORA_SFT: "supervised", REWARD: "reward", DPO: "dpo", GRPO: "grpo"}


@dataclass(frozen=True)
class Caught:
    """What the trainer would have been made of."""

    args: Any
    """The trainer's config."""
    model: Any
    adapter: Any
    """PEFT's config, or None."""
    sampling: Any
    """What says how answers are sampled: GRPO's config, PPO's GenerationConfig, or None."""
    score: Callable[[list[str]], list[float]] | None
    """The reward of answers to the first row."""


class _Enough(Exception):
    def __init__(self, caught: Caught) -> None:
        super().__init__()
        self.caught = caught


def job_of(file: TaskFile, out: Path, model: Path, **fields: Any) -> Job:
    """The job of the first stage."""
    stage = file.stages[0]
    return Job(task_id="t", task_name="t", stage=stage.name, raw=stage.raw, out=out, model_path=model, **fields)


def caught(job: Job, monkeypatch: pytest.MonkeyPatch) -> Caught:
    """Run the job until its trainer would be made."""
    trainer = job.raw["task_type"]
    if trainer == PPO:
        monkeypatch.setattr("executors.training.ppo.recipe.PPOTrainer", _ppo)
    else:
        module = importlib.import_module(f"executors.training.{_RECIPES[trainer]}")
        monkeypatch.setattr(module, "make_trainer", _trl)
    with pytest.raises(_Enough) as found:
        execute(job)
    return found.value.caught


def _trl(trainer: Any, setup: Any, *, model: Any, peft_config: Any, reward_funcs: Any = None, **_: Any) -> None:
    def score(answers: list[str]) -> list[float]:
        return reward_funcs(["n0"] * len(answers), answers, row_index=[0] * len(answers))

    raise _Enough(Caught(setup.args, model, peft_config, setup.args if reward_funcs else None, reward_funcs and score))


def _ppo(
    policy: Any, args: Any, tokenizer: Any, prompts: Any, score: Any, generation: Any, callbacks: Any, stop: Any
) -> None:
    from executors.training.ppo.rollout import Sampler

    adapter = policy.peft_config["default"] if hasattr(policy, "peft_config") else None
    sampling = Sampler(tokenizer, generation, [2], stop)._config
    raise _Enough(Caught(args, policy, adapter, sampling, lambda answers: score([0] * len(answers), answers)))
