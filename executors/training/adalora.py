"""AdaLoRA: the rank budget moves to the layers that need it while training (Zhang et al. 2023)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_FILE = "adalora.pt"
_START_RANK = 1.5
"""Rank at the start, as a multiple of the rank at the end; the ratio of PEFT's defaults."""
_WARM_UP, _LAST_PART = 0.1, 0.3
"""Shares of the steps before the budget falls and after it has fallen."""


def is_adalora(model: Any) -> bool:
    """Whether the model trains an AdaLoRA adapter."""
    return isinstance(model, PeftModel) and isinstance(model.peft_config["default"], AdaLoraConfig)


class AdaLora(TrainerCallback):
    """Plans the budget over the run's steps, updates it after each of them, and keeps it in checkpoints.

    While training, the ranks that were given up are masked, not cut: tensors keep their shapes, so that a checkpoint
    fits the optimizer's state. Does nothing for other models.
    """

    def __init__(self) -> None:
        self._pattern: dict[str, list[bool]] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Plan the budget, and take up what a checkpoint holds."""
        model = kwargs["model"]
        if not is_adalora(model):
            return
        config = model.peft_config["default"]
        config.total_step = state.max_steps
        config.tinit, config.tfinal = int(_WARM_UP * state.max_steps), int(_LAST_PART * state.max_steps)
        file = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}" / _FILE
        if state.global_step and file.exists():
            held = torch.load(file, map_location=model.device, weights_only=True)
            self._pattern = held["pattern"]
            for name, value in held["importance"].items():
                setattr(model.base_model.rankallocator, name, value)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Update importance and masks while the gradients are still there."""
        model = kwargs["model"]
        if is_adalora(model):
            config = model.peft_config["default"]
            config.rank_pattern = self._pattern
            model.base_model.update_and_allocate(state.global_step + 1)
            self._pattern, config.rank_pattern = config.rank_pattern, None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the importance of each rank beside the weights."""
        model = kwargs["model"]
        if is_adalora(model) and state.is_world_process_zero:
            allocator = model.base_model.rankallocator
            importance = {name: getattr(allocator, name) for name in ("ipt", "exp_avg_ipt", "exp_avg_unc")}
            folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
            torch.save({"pattern": self._pattern, "importance": importance}, folder / _FILE)


def start_rank(rank: int) -> int:
    """The rank that each layer starts with, so that it can fall to `rank` on average."""
    return max(rank + 1, round(_START_RANK * rank))
