"""Supervised fine-tuning with TRL's SFTTrainer: all weights, or LoRA adapters.

How a row becomes tokens:
- prompt and response, model with a chat template: one user turn and one assistant turn; the answer is learned.
- prompt and response, plain model: the prompt, then `separator` + response; both separator and response are learned,
  so the same prompt without any separator is all that generation needs later.
- one text column or a `prompt_template`: every token is learned. Conversations go through the chat template.
"""

from __future__ import annotations

from datasets import Dataset
from peft import PeftModel
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from executors.base import Result
from executors.context import TaskContext
from executors.rows import Example, Pair, TrainingRows, examples, needs_template
from executors.training.loading import load_model
from executors.training.lora import adapter_config
from executors.training.recipe import callbacks, fit, make_trainer, prepare
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.model import Lora

_LORA_LEARNING_RATE = 2e-4
"""Ten times the default for all weights, as TRL's documentation advises for adapters."""


def fine_tune(ctx: TaskContext, lora: Lora | None) -> Result:
    """Rows, weights, trainer, checkpoints, result."""
    setup = prepare(ctx, SFTConfig, lora, learning_rate=_LORA_LEARNING_RATE if lora else None)
    dataset = as_dataset(setup.rows, has_chat_template=bool(setup.tokenizer.chat_template))
    model, warnings = load_model(ctx, setup.start, lora, setup.gpu)
    trainer = make_trainer(
        SFTTrainer,
        setup,
        model=model,
        train_dataset=dataset,
        peft_config=adapter_config(ctx, lora) if lora and not isinstance(model, PeftModel) else None,
        callbacks=callbacks(ctx),
    )
    return fit(ctx, setup, trainer, rows=len(dataset), warnings=warnings)


def as_dataset(rows: TrainingRows, *, has_chat_template: bool) -> Dataset:
    """Return the rows in TRL's formats: `prompt` + `completion`, `text`, or `messages`; kept in memory."""
    return Dataset.from_list([_record(example, rows, has_chat_template) for example in examples(rows)])


def _record(example: Example, rows: TrainingRows, has_chat_template: bool) -> dict[str, Json]:
    if isinstance(example, Pair):
        if isinstance(example.prompt, str) and has_chat_template:
            return {
                "prompt": [{"role": "user", "content": example.prompt}],
                "completion": [{"role": "assistant", "content": example.response}],
            }
        if isinstance(example.prompt, str):
            return {"prompt": example.prompt, "completion": f"{rows.fields.separator}{example.response}"}
        if not has_chat_template:
            raise needs_template(rows.table)
        return {"prompt": example.prompt, "completion": example.response}
    if isinstance(example.text, str):
        return {"text": example.text}
    if not has_chat_template:
        raise needs_template(rows.table)
    return {"messages": example.text}
