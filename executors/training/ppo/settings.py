"""What `spec.training` may say for `ppo`."""

from __future__ import annotations

from dataclasses import dataclass, fields

from transformers import TrainingArguments

from mloc_dagster.spec.canonical import spellings
from mloc_dagster.spec.training import Training

_FROM_TRANSFORMERS = frozenset({
    "lr_scheduler_type", "lr_scheduler_kwargs", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon",
    "gradient_checkpointing_kwargs", "logging_strategy", "logging_first_step", "run_name", "full_determinism", "tf32",
})  # fmt: skip
"""Fields of transformers' TrainingArguments, beyond the keys of the language, that the PPO trainer heeds."""


@dataclass
class PPOConfig(TrainingArguments):
    """Settings of the PPO trainer. A step is one batch of rollouts and all updates that are made from it.

    A process samples `per_device_train_batch_size` x `gradient_accumulation_steps` rollouts a step, at most
    `per_device_train_batch_size` at once. Steps, and with them `max_steps`, `save_steps` and the learning rate's
    schedule, count such batches, not optimizer steps.
    """

    learning_rate: float = 3e-6
    max_length: int | None = None
    """Longest prompt and answer together, in tokens; longer prompts lose their beginning."""
    ppo_epochs: int = 4
    """Passes over each batch of rollouts."""
    mini_batch_size: int | None = None
    """Rollouts of a process that an optimizer step takes; by default all of the step."""
    num_mini_batches: int | None = None
    """Optimizer steps in a pass; the same said in another way."""
    kl_coef: float = 0.05
    """Weight of the divergence from the reference in the reward; where the adaptive one starts."""
    adap_kl_ctrl: bool = False
    """Adapt `kl_coef`, so that the divergence stays near `target`."""
    target: float | None = None
    """Divergence from the reference that is aimed at, in nats a rollout; `target_kl` or 6 where it is not given."""
    horizon: float = 10_000.0
    """Rollouts over which the adaptive coefficient may change by a fifth of itself."""
    target_kl: float | None = None
    """Divergence from the sampling policy, in nats a token, at which a step's updates end."""
    early_stopping: bool | None = None
    """Whether `target_kl` does that; by default where it is given and `kl_coef` is not adapted to it."""
    gamma: float = 1.0
    """Discount of later rewards."""
    lam: float = 0.95
    """Decay of the advantage estimate: 0 trusts the values alone, 1 the rewards alone."""
    cliprange: float = 0.2
    """How far the probability ratio may gain."""
    cliprange_value: float = 0.2
    """How far a value may move in a step."""
    vf_coef: float = 0.1
    """Weight of the value loss."""
    whiten_rewards: bool = False
    """Scale the rewards of a batch to variance 1."""
    missing_eos_penalty: float | None = None
    """Taken off the score of an answer that was cut at its longest."""
    disable_dropout: bool = True
    """Train without dropout, so that the ratio to the sampling policy is 1 at first."""

    def __post_init__(self) -> None:
        """Raise ValueError for values out of range, naming key and value."""
        for name in _NUMBERS:
            setattr(self, name, _number(name, getattr(self, name)))
        super().__post_init__()
        if self.mini_batch_size and self.num_mini_batches and self.rollouts != (
            self.mini_batch_size * self.num_mini_batches
        ):  # fmt: skip
            raise ValueError(
                f"mini_batch_size {self.mini_batch_size} times num_mini_batches {self.num_mini_batches} is not the "
                f"{self.rollouts} rollouts of a step; give one of them"
            )
        cut = self.mini_batch_size or self.num_mini_batches or 1
        if self.rollouts % cut:
            key = "mini_batch_size" if self.mini_batch_size else "num_mini_batches"
            raise ValueError(
                f"{key} {cut} does not divide the {self.rollouts} rollouts of a step "
                f"(per_device_train_batch_size {self.per_device_train_batch_size} x gradient_accumulation_steps "
                f"{self.gradient_accumulation_steps})"
            )
        if self.early_stopping and self.target_kl is None:
            raise ValueError("early_stopping is true, but there is no target_kl to stop at")

    @property
    def rollouts(self) -> int:
        """Rollouts of a process in one step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def local_mini_batch(self) -> int:
        """Rollouts of a process in one optimizer step."""
        return self.mini_batch_size or self.rollouts // (self.num_mini_batches or 1)

    @property
    def kl_limit(self) -> float | None:
        """Divergence in nats a token at which a step's updates end, or None."""
        wanted = not self.adap_kl_ctrl if self.early_stopping is None else self.early_stopping
        return self.target_kl if wanted else None

    @property
    def kl_target(self) -> float | None:
        """Divergence in nats a rollout that `kl_coef` is adapted to, or None where it is fixed."""
        return (self.target or self.target_kl or _TARGET) if self.adap_kl_ctrl else None

    @property
    def unread(self) -> list[str]:
        """Warnings for keys that are given, but without effect beside the others."""
        found = []
        if self.target_kl is not None and self.kl_limit is None and (self.target or not self.adap_kl_ctrl):
            found.append("training.target_kl is not used: early_stopping is off and kl_coef is not adapted to it")
        if self.target is not None and not self.adap_kl_ctrl:
            found.append("training.target is not used, because adap_kl_ctrl is off")
        return found


_TARGET = 6.0
"""Of Ziegler et al. 2019, nats a rollout."""
_NUMBERS = {
    "kl_coef": (0.0, None), "target": (0.0, None), "horizon": (1.0, None), "target_kl": (0.0, None),
    "gamma": (0.0, 1.0), "lam": (0.0, 1.0), "cliprange": (0.0, None), "cliprange_value": (0.0, None),
    "vf_coef": (0.0, None), "missing_eos_penalty": (0.0, None),
}  # fmt: skip
"""Least and greatest value."""


def pass_through() -> list[str]:
    """Names of the keys of `spec.training` beyond those of the language, sorted."""
    inherited = {field.name for field in fields(TrainingArguments)}
    own = {field.name for field in fields(PPOConfig)} - inherited
    return sorted(own.union(_FROM_TRANSFORMERS).difference(spellings(Training)))


def _number(name: str, value: float | str | None) -> float | None:
    """The value as a number (YAML reads 1e-1 as text); None where nothing is given."""
    if value is None:
        return None
    least, most = _NUMBERS[name]
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}, which is no number") from None
    if not (least <= number and (most is None or number <= most)):
        raise ValueError(
            f"{name} is {value!r}, not {f'at least {least:g}' if most is None else f'in {least:g}..{most:g}'}"
        )
    return number
