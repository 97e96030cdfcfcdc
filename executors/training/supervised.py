"""Supervised fine-tuning with TRL's SFTTrainer: all weights, or LoRA adapters.

How a row becomes tokens:
- prompt and response, model with a chat template: one user turn and one assistant turn; the answer is learned.
- prompt and response, plain model: the prompt, then `separator` + response; both separator and response are learned,
  so the same prompt without any separator is all that generation needs later.
- one text column or a `prompt_template`: every token is learned. Conversations go through the chat template.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import AutoTokenizer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from executors.base import ExecutorError, Interrupted, Result
from executors.context import TaskContext
from executors.rows import Example, Pair, TrainingRows, examples, training_rows
from executors.training.arguments import trainer_arguments
from executors.training.checkpoints import AlreadyFinished, Checkpointing, resume_point
from executors.training.devices import on_gpu
from executors.training.finish import end_if_stopped, fingerprint, save_weights, training_result
from executors.training.loading import load_model
from executors.training.lora import lora_config
from executors.training.progress import Progress
from executors.weights import digest, starting_weights, trusts_code
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.model import Lora

_LORA_LEARNING_RATE = 2e-4
"""Ten times the default for all weights, as TRL's documentation advises for adapters."""


def fine_tune(ctx: TaskContext, lora: Lora | None) -> Result:
    """Rows, weights, trainer, checkpoints, result."""
    started = time.monotonic()
    rows = training_rows(ctx)
    start = starting_weights(ctx)
    gpu = on_gpu(ctx)
    checkpoints = ctx.out / "checkpoints"
    arguments = trainer_arguments(
        ctx.spec.training, SFTConfig, checkpoints=checkpoints, on_gpu=gpu,
        learning_rate=_LORA_LEARNING_RATE if lora else None,
    )  # fmt: skip
    args = arguments.build(SFTConfig)
    args._n_gpu = min(args.n_gpu, 1)  # one process drives one device; nn.DataParallel is never wanted
    tokenizer = AutoTokenizer.from_pretrained(start.model, trust_remote_code=trusts_code(ctx))
    dataset = as_dataset(rows, has_chat_template=bool(tokenizer.chat_template))
    model, warnings = load_model(ctx, start, lora, gpu)
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=lora_config(lora) if lora and not isinstance(model, PeftModel) else None,
        callbacks=[Checkpointing(ctx.spec.training), Progress(ctx)],
    )
    if ctx.stop.is_set():
        raise Interrupted
    before = fingerprint(trainer.model)
    resumed_from = resume_point(ctx, checkpoints)
    with suppress(AlreadyFinished):
        trainer.train(resume_from_checkpoint=str(resumed_from) if resumed_from else None)
    end_if_stopped(ctx, trainer)
    saved, weights_digest = _save(ctx, trainer, tokenizer, lora)
    return training_result(
        ctx, trainer, rows=len(dataset), seconds=time.monotonic() - started, resumed_from=resumed_from, saved=saved,
        weights_digest=weights_digest, start_digest=digest(start.model), changed=fingerprint(trainer.model) != before,
        warnings=[*rows.table.warnings, *arguments.warnings, *warnings],
    )  # fmt: skip


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
        _need_template(rows, has_chat_template)
        return {"prompt": example.prompt, "completion": example.response}
    if isinstance(example.text, str):
        return {"text": example.text}
    _need_template(rows, has_chat_template)
    return {"messages": example.text}


def _need_template(rows: TrainingRows, has_chat_template: bool) -> None:
    if not has_chat_template:
        raise ExecutorError(
            f"{rows.table.origin} holds conversations, but the model has no chat template.",
            "Use a chat model, or plain text columns.",
        )


def _save(ctx: TaskContext, trainer: Any, tokenizer: Any, lora: Lora | None) -> tuple[dict[str, Json], str | None]:
    if not ctx.spec.training.save_model:
        return {}, None
    folder = ctx.out / ("final_lora" if lora else "final_model")
    return {f"{folder.name}_path": str(folder)}, save_weights(trainer, tokenizer, folder)
