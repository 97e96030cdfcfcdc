"""Direct preference optimization with TRL's DPOTrainer (Rafailov et al. 2023)."""

from __future__ import annotations

from copy import deepcopy

from peft import PeftModel
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from executors.base import Result
from executors.context import TaskContext
from executors.training.loading import load_model
from executors.training.lora import adapter_config
from executors.training.preferences import as_pairs
from executors.training.recipe import callbacks, fit, make_trainer, prepare
from mloc_dagster.spec.model import Lora

_LORA_LEARNING_RATE = 1e-5
"""Ten times TRL's default for all weights, as its documentation advises for adapters."""


def prefer(ctx: TaskContext, lora: Lora | None) -> Result:
    """Rows, weights, reference, trainer, checkpoints, result.

    The reference is the model without the new adapter, else a frozen copy of the starting weights.
    """
    setup = prepare(ctx, DPOConfig, lora, learning_rate=_LORA_LEARNING_RATE if lora else None)
    pairs, warnings = as_pairs(setup.rows, has_chat_template=bool(setup.tokenizer.chat_template))
    model, more = load_model(ctx, setup.start, lora, setup.gpu)
    trainer = make_trainer(
        DPOTrainer,
        setup,
        model=model,
        ref_model=None if lora or setup.args.precompute_ref_log_probs else deepcopy(model),
        train_dataset=pairs,
        peft_config=adapter_config(ctx, lora) if lora and not isinstance(model, PeftModel) else None,
        callbacks=callbacks(ctx),
    )
    logged = ("rewards/accuracies", "rewards/margins")
    return fit(ctx, setup, trainer, rows=len(pairs), warnings=[*warnings, *more], logged=logged)
