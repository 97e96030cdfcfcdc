"""Progress of a trainer, and the way to stop it."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from executors.context import TaskContext
from executors.distributed import ranks
from mloc_dagster.spec.base import Json


class Progress(TrainerCallback):
    """Sends steps and metrics to the progress sink, and ends training with a checkpoint when `ctx.stop` is set."""

    def __init__(self, ctx: TaskContext) -> None:
        self._ctx = ctx
        self._metrics: dict[str, float] = {}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Report the step; on request store the state and end."""
        self._ctx.progress.update(state.global_step, state.max_steps, "steps", **self._metrics)
        if ranks.any_of(self._ctx.stop.is_set()):
            self._ctx.stop.set()  # every process ends at the same step
            control.should_save = control.should_log = control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Json] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the numbers of the newest log line."""
        self._metrics = {key: float(value) for key, value in (logs or {}).items() if isinstance(value, int | float)}
        self._ctx.progress.update(state.global_step, state.max_steps, "steps", **self._metrics)


def loss_history(log_history: list[dict[str, Json]]) -> list[dict[str, Json]]:
    """The lines of a trainer's log that hold a training loss, in order of steps."""
    return [line for line in log_history if "loss" in line]


def mean_loss(log_history: list[dict[str, Json]]) -> float | None:
    """Mean training loss a step. Each line holds the mean since the line before, so lines weigh by their steps.

    Unlike the trainer's own `train_loss` it covers what happened before an interruption too.
    """
    total = weight = 0.0
    last = 0
    for line in loss_history(log_history):
        steps = int(line["step"]) - last
        total, weight, last = total + float(line["loss"]) * steps, weight + steps, int(line["step"])
    return total / weight if weight else None
