"""What all trainers share: rows and settings before, one resumable `train()`, weights and result after."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, TrainerCallback

from executors.base import ExecutorError, Interrupted, Result
from executors.context import TaskContext
from executors.distributed import ranks
from executors.distributed.layout import layout_of
from executors.rows import TrainingRows, training_rows
from executors.training.adalora import AdaLora
from executors.training.arguments import Arguments, trainer_arguments
from executors.training.checkpoints import AlreadyFinished, Checkpointing, resume_point
from executors.training.devices import on_gpu, with_precision
from executors.training.finish import end_if_stopped, fingerprint, save_weights, training_result
from executors.training.made_with import made_with
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


def prepare(
    ctx: TaskContext, config: type, lora: Lora | None, *, learning_rate: float | None = None,
    more: Mapping[str, Json] | None = None,
) -> Setup:  # fmt: skip
    """Read the rows first, then find the weights and build the trainer's config.

    `learning_rate` counts where the file gives none; `more` are arguments from outside `spec.training`. Raises
    ExecutorError for whatever a person can mend.
    """
    gpu, checkpoints = on_gpu(ctx), ctx.out / "checkpoints"
    ranks.join(gpu)
    with ranks.first_process_first():
        rows = training_rows(ctx)
        start = starting_weights(ctx)
    arguments = trainer_arguments(
        with_precision(ctx), config, checkpoints=checkpoints, on_gpu=gpu, learning_rate=learning_rate
    )
    arguments = replace(arguments, values={**arguments.values, **(more or {})})
    args = arguments.build(config)
    args._n_gpu = min(args.n_gpu, 1)  # one process drives one device; nn.DataParallel is never wanted
    tokenizer = AutoTokenizer.from_pretrained(start.model, trust_remote_code=trusts_code(ctx))
    return Setup(rows, start, lora, gpu, arguments, args, tokenizer, checkpoints)


def callbacks(ctx: TaskContext) -> list[TrainerCallback]:
    """The budget of AdaLoRA, checkpoints that are whole or not used, and progress that can stop the training."""
    return [AdaLora(), Checkpointing(ctx.spec.training), Progress(ctx)]


def make_trainer(trainer: Callable[..., Any], setup: Setup, **arguments: Any) -> Any:
    """Make a TRL trainer; its own complaints about the settings become an ExecutorError."""
    try:
        made = trainer(args=setup.args, processing_class=setup.tokenizer, **arguments)
    except (ValueError, NotImplementedError) as error:
        raise ExecutorError(f"TRL refuses the settings: {error}", "Mend spec.training or spec.lora.") from error
    if not setup.gpu:
        # TRL turns what is trained on quantized weights to bfloat16, which fits only under a GPU's autocast.
        for part in made.model.parameters():
            if part.requires_grad:
                part.data = part.data.float()
    return made


def fit(
    ctx: TaskContext, setup: Setup, trainer: Any, *, rows: int, warnings: Sequence[str] = (),
    payload: Mapping[str, Json] | None = None, logged: Sequence[str] = (),
) -> Result:  # fmt: skip
    """Train from the newest checkpoint or the start, save the weights, and assemble the result.

    `rows` is the number of rows learned from; `payload` holds what a trainer adds to the result; the last values of
    the log entries that `logged` names become metrics. Raises Interrupted when `ctx.stop` was set; a checkpoint is
    there by then.
    """
    if ranks.any_of(ctx.stop.is_set()):
        raise Interrupted
    layout = layout_of(ctx.spec, ctx.devices)
    before = fingerprint(trainer.model)
    resumed_from = resume_point(ctx, setup.checkpoints)
    try:
        with suppress(AlreadyFinished):
            trainer.train(resume_from_checkpoint=str(resumed_from) if resumed_from else None)
    except ValueError as error:
        if not str(error).startswith("Unknown loss type"):  # TRL looks at `loss_type` in the first step only
            raise
        raise ExecutorError(f"training.loss_type is refused by TRL: {error}", "Mend the key.") from error
    end_if_stopped(ctx, trainer)
    saved, weights_digest = _save(ctx, setup, trainer)
    result = training_result(
        ctx, trainer, rows=rows, seconds=time.monotonic() - setup.started, resumed_from=resumed_from, saved=saved,
        weights_digest=weights_digest, start_digest=digest(setup.start.model),
        changed=fingerprint(trainer.model) != before,
        warnings=[
            *layout.warnings, *setup.start.warnings, *setup.rows.table.warnings, *setup.arguments.warnings, *warnings,
            *_dropout(setup),
        ],
    )  # fmt: skip
    last, first = _last_logged(trainer.state.log_history, logged), ranks.rank() == 0
    metrics = {**result.payload["metrics"], **last}
    return result.model_copy(
        update={
            "payload": {**result.payload, "metrics": metrics, **(payload or {})},
            "metrics": {**result.metrics, **last},
            "metadata": {**result.metadata, **(made_with(setup.rows.table.rows, gpu=setup.gpu) if first else {})},
        }
    )


def _dropout(setup: Setup) -> list[str]:
    """DPO, reward modelling and PPO train without dropout unless the file says otherwise."""
    lora = setup.lora
    if lora is None or not lora.dropout or "dropout" not in lora.model_fields_set:
        return []
    disabled = getattr(setup.args, "disable_dropout", False)
    return [f"lora.dropout {lora.dropout} is not applied: training.disable_dropout is true"] if disabled else []


def _last_logged(history: Sequence[Mapping[str, Json]], names: Sequence[str]) -> dict[str, float]:
    found = {name: [line[name] for line in history if line.get(name) is not None] for name in names}
    return {name: float(values[-1]) for name, values in found.items() if values}


def _save(ctx: TaskContext, setup: Setup, trainer: Any) -> tuple[dict[str, Json], str | None]:
    if not ctx.spec.training.save_model:
        return {}, None
    folder = ctx.out / ("final_lora" if setup.lora else "final_model")
    return {f"{folder.name}_path": str(folder)}, save_weights(trainer, setup.tokenizer, folder)
