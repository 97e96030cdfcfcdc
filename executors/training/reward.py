"""Reward modelling with TRL's RewardTrainer (Bradley-Terry loss on one output of a sequence classifier)."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from transformers import AutoModelForSequenceClassification, set_seed
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from executors.base import ExecutorError, Result
from executors.context import TaskContext
from executors.training.loading import load_model
from executors.training.lora import adapter_config
from executors.training.preferences import as_pairs
from executors.training.recipe import callbacks, fit, make_trainer, prepare
from mloc_dagster.spec.model import Lora

_LORA_LEARNING_RATE = 1e-3
"""Ten times TRL's default for all weights, as its documentation advises for adapters."""
_HEAD_TASK = "SEQ_CLS"


def train_reward_model(ctx: TaskContext, lora: Lora | None) -> Result:
    """Rows, weights with a new head of one output, trainer, checkpoints, result.

    `metrics.accuracy` is the share of training pairs, since the last log line but one, whose chosen answer scored
    higher.
    """
    setup = prepare(ctx, RewardConfig, lora, learning_rate=_LORA_LEARNING_RATE if lora else None)
    _end_of_text(setup.tokenizer)
    pairs, warnings = as_pairs(setup.rows, has_chat_template=bool(setup.tokenizer.chat_template))
    set_seed(setup.args.seed)  # the new head is random
    model, more = load_model(ctx, setup.start, lora, setup.gpu, AutoModelForSequenceClassification, num_labels=1)
    if lora and lora.task_type != _HEAD_TASK:
        if "task_type" in lora.model_fields_set:
            more.append(f"lora.task_type {lora.task_type} does not fit a reward model; {_HEAD_TASK} was used")
        lora = lora.model_copy(update={"task_type": _HEAD_TASK})
    trainer: Any = make_trainer(
        RewardTrainer,
        setup,
        model=model,
        train_dataset=pairs,
        peft_config=adapter_config(ctx, lora) if lora and not isinstance(model, PeftModel) else None,
        callbacks=callbacks(ctx),
    )
    kept = len(trainer.train_dataset)
    if kept < len(pairs):
        warnings.append(_dropped(len(pairs), kept, setup.args.max_length))
    return fit(ctx, setup, trainer, rows=kept, warnings=[*warnings, *more], logged=("accuracy", "margin"))


def _end_of_text(tokenizer: Any) -> None:
    """TRL marks the end of each text; an encoder's tokenizer has a separator for that."""
    if tokenizer.eos_token is None:
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.eos_token is None:
        raise ExecutorError(
            "The model's tokenizer has neither an end token nor a separator, which reward training needs.",
            "Name another model.",
        )


def _dropped(given: int, kept: int, longest: int) -> str:
    what = f"{given - kept} of {given} rows are longer than training.max_seq_length {longest} tokens"
    if kept == 0:
        raise ExecutorError(f"{what}, so none is left.", "Raise training.max_seq_length or shorten the rows.")
    return f"{what} and were left out"
