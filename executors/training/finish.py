"""What a trainer leaves: the weights, and the result of SPEC §12."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from executors.base import Interrupted, Result
from executors.context import TaskContext
from executors.distributed import ranks
from executors.training.progress import mean_loss
from executors.weights import digest
from mloc_dagster.files.atomic import aside, new_folder
from mloc_dagster.spec.base import Json


def save_weights(trainer: Any, tokenizer: Any, folder: Path) -> str:
    """Save model (or adapter) and tokenizer; the folder appears only when it is complete. Returns its digest.

    All processes of a training take part, since each may hold a piece of the weights; the first one writes.
    """
    with new_folder(folder) if ranks.rank() == 0 else nullcontext(aside(folder)) as partial:
        ranks.barrier()
        trainer.save_model(str(partial))
        if ranks.rank() == 0:
            tokenizer.save_pretrained(partial)
            (partial / "training_args.bin").unlink(missing_ok=True)
            shutil.rmtree(partial / "ref", ignore_errors=True)  # TRL's frozen copy of the adapter it started from
        ranks.barrier()
    ranks.barrier()
    return ranks.agreed(digest(folder) if ranks.rank() == 0 else "")  # other nodes do not have the folder


def fingerprint(model: Any) -> tuple[float, ...]:
    """A sum of each trainable parameter; it differs when the weights have changed."""
    return tuple(float(part.detach().double().sum()) for part in model.parameters() if part.requires_grad)


def end_if_stopped(ctx: TaskContext, trainer: Any) -> None:
    """Raise Interrupted when training ended on request; its checkpoint is complete by then."""
    if ctx.stop.is_set() and trainer.state.global_step < trainer.state.max_steps:
        raise Interrupted


def training_result(
    ctx: TaskContext, trainer: Any, *, rows: int, seconds: float, resumed_from: Path | None, saved: dict[str, Json],
    weights_digest: str | None, start_digest: str, changed: bool, warnings: list[str],
) -> Result:  # fmt: skip
    """Assemble the result. `saved` holds `final_model_path` or `final_lora_path`; `seconds` are of this attempt."""
    history: list[dict[str, Json]] = trainer.state.log_history
    loss = mean_loss(history)
    last = next((float(line["loss"]) for line in reversed(history) if "loss" in line), None)
    metrics: dict[str, float] = {"steps": float(trainer.state.global_step), "epoch": float(trainer.state.epoch or 0)}
    metrics |= {"train_loss": loss} if loss is not None else {}
    metrics |= {"final_loss": last} if last is not None else {}
    metrics |= _throughput(history)
    source = ctx.spec.model.source
    payload: dict[str, Json] = {
        "ok": True,
        "task_id": ctx.task_id,
        "training_successful": True,
        "training_time_seconds": seconds,
        "error_message": None,
        "model_name": source.identifier if source else None,
        "dataset_size": rows,
        "world_size": ranks.world_size(),
        "output_dir": str(ctx.out),
        "checkpoints_dir": str(ctx.out / "checkpoints"),
        "resume_from_path": str(resumed_from) if resumed_from else None,
        **saved,
        "weights_digest": weights_digest,
        "initial_weights_digest": start_digest,
        "weights_changed": changed,
        "metrics": metrics,
        "log_history": history,
    }
    metadata: dict[str, Json] = {
        "world_size": ranks.world_size(),
        "weights_digest": weights_digest,
        "start_weights_digest": start_digest,
        "weights_changed": changed,
        "warnings": warnings,
    }
    return Result(payload=payload, metrics=metrics | {"training_time_seconds": seconds}, metadata=metadata)


def _throughput(history: list[dict[str, Json]]) -> dict[str, float]:
    """Tokens a second that this attempt learned from, by what TRL counted; nothing where it did not count."""
    tokens = max((line["num_tokens"] for line in history if "num_tokens" in line), default=0)
    seconds = next((line["train_runtime"] for line in reversed(history) if "train_runtime" in line), 0)
    return {"tokens_per_second": tokens / seconds} if tokens and seconds else {}
