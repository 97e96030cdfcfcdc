"""Finds the cause of a failure in what a process left: its exit code, its error, and the kernel's count of kills."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from mloc_dagster.placement.failures.cause import Cause

MEMORY_HINT = (
    "Ask for less at a time: a smaller batch (per_device_train_batch_size with more gradient_accumulation_steps), "
    "gradient_checkpointing, a lower max_model_len, an adapter or quantized weights; or for more memory in "
    "resources.hardware."
)
_STOPPED = 143
"""Exit code of work that was asked to end and did; who asked was not us, or this would not be a failure."""
_OUT_OF_MEMORY = re.compile(
    r"\bMemoryError\b|OutOfMemoryError|(CUDA|HIP|XPU)( error:)? out of memory|can't allocate memory"
    r"|Cannot allocate memory|ALLOC_FAILED|std::bad_alloc"
)


def of_error(kind: str, message: str) -> Cause:
    """Return the cause of an error that the work itself has reported."""
    if kind == "user":
        return Cause.USER
    return Cause.OUT_OF_MEMORY if _OUT_OF_MEMORY.search(message) else Cause.INTERNAL


def of_exit(code: int, kernel_killed: bool) -> Cause:
    """Return the cause when the work ended without a word; negative codes are signals."""
    if code == -signal.SIGKILL:
        return Cause.OUT_OF_MEMORY if kernel_killed else Cause.WORKER_LOST
    if code in (_STOPPED, -signal.SIGTERM, -signal.SIGHUP, -signal.SIGINT):
        return Cause.WORKER_LOST
    return Cause.INTERNAL


def oom_kills() -> int:
    """Return how many processes of this machine the kernel has killed for want of memory, in any control group.

    The one place to ask a control group of its own instead. 0 where the kernel does not tell (Linux since 4.13 does).
    """
    try:
        lines = Path("/proc/vmstat").read_text("ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
