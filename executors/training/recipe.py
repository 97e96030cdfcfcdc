"""What all trainers share: rows and settings before, one resumable `train()`, weights and result after."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, TrainerCallback

from executors.base import Interrupted, Result
from executors.context import TaskContext
from executors.rows import TrainingRows, training_rows
from executors.training.arguments import Arguments, trainer_arguments
from executors.training.checkpoints import AlreadyFinished, Checkpointing, resume_point
from executors.training.devices import on_gpu
from executors.training.finish import end_if_stopped, fingerprint, save_weights, training_result
from executors.training.progress import Progress
from executors.weights import Start, digest, starting_weights, trusts_code
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.model import Lora


@dataclass(frozen=True)
class Setup:
    """Rows, starting weights and trainer arguments of one stage. `lora` is None where all weights are trained."""

    rows: TrainingRows
    start: Start
    lora: Lora | None
    gpu: bool
    arguments: Arguments
    args: Any
    """The TRL config, built."""
    tokenizer: Any
    checkpoints: Path
    started: float = field(default_factory=time.monotonic)


def prepare(ctx: TaskContext, config: type, lora: Lora | None, *, learning_rate: float | None = None) -> Setup:
    """Read the rows first, then find the weights and build the trainer's config.

    `learning_rate` counts where the file gives none. Raises ExecutorError for whatever a person can mend.
    """
    rows = training_rows(ctx)
    start = starting_weights(ctx)
    gpu, checkpoints = on_gpu(ctx), ctx.out / "checkpoints"
    arguments = trainer_arguments(
        ctx.spec.training, config, checkpoints=checkpoints, on_gpu=gpu, learning_rate=learning_rate
    )
    args = arguments.build(config)
    args._n_gpu = min(args.n_gpu, 1)  # one process drives one device; nn.DataParallel is never wanted
    tokenizer = AutoTokenizer.from_pretrained(start.model, trust_remote_code=trusts_code(ctx))
    return Setup(rows, start, lora, gpu, arguments, args, tokenizer, checkpoints)


def callbacks(ctx: TaskContext) -> list[TrainerCallback]:
    """Checkpoints that are whole or not used, and progress that can stop the training."""
    return [Checkpointing(ctx.spec.training), Progress(ctx)]


def fit(
    ctx: TaskContext, setup: Setup, trainer: Any, *, rows: int, warnings: Sequence[str] = (),
    payload: Mapping[str, Json] | None = None,
) -> Result:  # fmt: skip
    """Train from the newest checkpoint or the start, save the weights, and assemble the result.

    `rows` is the number of rows learned from; `payload` holds what a trainer adds to the result. Raises Interrupted
    when `ctx.stop` was set; a checkpoint is there by then.
    """
    if ctx.stop.is_set():
        raise Interrupted
    before = fingerprint(trainer.model)
    resumed_from = resume_point(ctx, setup.checkpoints)
    with suppress(AlreadyFinished):
        trainer.train(resume_from_checkpoint=str(resumed_from) if resumed_from else None)
    end_if_stopped(ctx, trainer)
    saved, weights_digest = _save(ctx, setup, trainer)
    result = training_result(
        ctx, trainer, rows=rows, seconds=time.monotonic() - setup.started, resumed_from=resumed_from, saved=saved,
        weights_digest=weights_digest, start_digest=digest(setup.start.model),
        changed=fingerprint(trainer.model) != before,
        warnings=[*setup.rows.table.warnings, *setup.arguments.warnings, *warnings],
    )  # fmt: skip
    return result.model_copy(update={"payload": {**result.payload, **(payload or {})}})


def _save(ctx: TaskContext, setup: Setup, trainer: Any) -> tuple[dict[str, Json], str | None]:
    if not ctx.spec.training.save_model:
        return {}, None
    folder = ctx.out / ("final_lora" if setup.lora else "final_model")
    return {f"{folder.name}_path": str(folder)}, save_weights(trainer, setup.tokenizer, folder)
