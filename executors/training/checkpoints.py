"""Checkpoints that are either whole or not used."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from executors.base import ExecutorError
from executors.context import TaskContext
from executors.distributed import ranks
from mloc_dagster.files.atomic import sync_tree, write_text
from mloc_dagster.spec.training import Training

MARKER = "complete.json"
"""Written last, with the size of every file: a checkpoint without it, or with other sizes, was cut off."""
_AUTOMATIC_PARTS = 10
_AUTOMATIC_SECONDS = 600.0


def newest_complete(folder: Path) -> Path | None:
    """Return the complete checkpoint with the most steps, or None; half-written ones are removed."""
    found = _newest_complete(folder) if ranks.rank() == 0 else None
    return ranks.agreed(found)


def _newest_complete(folder: Path) -> Path | None:
    whole: list[Path] = []
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_steps):
        if is_complete(checkpoint):
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint, ignore_errors=True)
    return whole[-1] if whole else None


def is_complete(checkpoint: Path) -> bool:
    """Whether every file that the marker lists is there with its size."""
    try:
        sizes: dict[str, int] = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))["sizes"]
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def resume_point(ctx: TaskContext, folder: Path) -> Path | None:
    """Where training goes on: what an earlier attempt of this task left, else `training.resume_from_path`."""
    own = newest_complete(folder)
    asked = ctx.spec.training.resume_from_path
    if own is not None or asked is None:
        return own
    path = Path(asked)
    if (path / "trainer_state.json").exists():
        return path
    inner = newest_state(path)
    if inner is None:
        raise ExecutorError(
            f"training.resume_from_path {asked!r} holds no checkpoint (no trainer_state.json).",
            "Name a checkpoint-N folder, or a folder that holds some.",
        )
    return inner


def newest_state(folder: Path) -> Path | None:
    """The checkpoint with the most steps in a folder that somebody else wrote; it is left as it is."""
    found = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").exists()]
    return max(found, key=_steps, default=None)


class AlreadyFinished(Exception):
    """The checkpoint that training goes on from was written after its last step."""


class Checkpointing(TrainerCallback):
    """Saves when it is due, marks what is complete, and only then removes older checkpoints.

    Due is every `save_steps` steps or at the end of an epoch where the file says so; else every tenth of the run and
    at least every 10 minutes, of which one is kept. A loss is logged with each checkpoint, so that a run that is
    continued from it logs the same intervals as one that was never interrupted.
    """

    def __init__(self, training: Training) -> None:
        self._strategy = training.save_strategy or ("steps" if training.save_steps else "auto")
        self._every = training.save_steps
        self._keep = training.save_total_limit or (1 if self._every is None and self._strategy == "auto" else None)
        self._saved_at = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Choose how often to save once the number of steps is known."""
        if self._every is None:
            self._every = max(1, state.max_steps // _AUTOMATIC_PARTS)
        self._saved_at = time.monotonic()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raise AlreadyFinished instead of one step too many: the trainer looks at its limit only after a step."""
        if state.global_step >= state.max_steps:
            raise AlreadyFinished

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint when one is due."""
        late = self._strategy == "auto" and time.monotonic() - self._saved_at > _AUTOMATIC_SECONDS
        late = ranks.agreed(late) if self._strategy == "auto" else False
        regular = self._strategy in ("auto", "steps") and state.global_step % (self._every or 1) == 0
        if late or regular:
            control.should_save = True
        if control.should_save:
            control.should_log = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a checkpoint at the end of an epoch where the file wants that."""
        if self._strategy == "epoch":
            control.should_save = control.should_log = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Make the checkpoint durable and mark it, then remove those beyond the limit."""
        folder = Path(args.output_dir or ".")
        checkpoint = folder / f"checkpoint-{state.global_step}"
        ranks.barrier()  # each process has written its part
        self._saved_at = time.monotonic()
        if ranks.rank() > 0:
            return
        mark_complete(checkpoint)
        if self._keep is not None:
            for old in sorted(folder.glob("checkpoint-*"), key=_steps)[: -self._keep]:
                shutil.rmtree(old, ignore_errors=True)


def mark_complete(checkpoint: Path) -> None:
    """Write the marker after all other files are durable."""
    sync_tree(checkpoint)
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != MARKER]
    sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
    write_text(checkpoint / MARKER, json.dumps({"sizes": sizes}))


def _steps(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1
