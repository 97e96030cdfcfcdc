"""What the processes of one training must agree on. Alone, each function is a matter of course."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import distributed

from executors.base import ExecutorError
from executors.distributed.layout import is_rank
from executors.distributed.nodes import this_node

Value = TypeVar("Value")


def join(on_gpu: bool) -> None:
    """Join the other processes; raises ExecutorError when fewer came than were started.

    Trainers that are started in another way train alone without a word, each on all rows; so the size is checked.
    """
    if not is_rank():
        return
    from accelerate import PartialState

    PartialState(cpu=not on_gpu)
    expected = int(os.environ["WORLD_SIZE"])
    if world_size() != expected:
        raise ExecutorError(
            f"{expected} processes were started, but they train in a world of {world_size()}.", "See the logs."
        )


def world_size() -> int:
    """Number of processes that train together."""
    return distributed.get_world_size() if _together() else 1


def rank() -> int:
    """Number of this process among them, from 0."""
    return distributed.get_rank() if _together() else 0


def barrier() -> None:
    """Wait for all."""
    if _together():
        distributed.barrier()


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if not _together():
        return flag
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    total = torch.tensor([int(flag)], device=device)
    distributed.all_reduce(total, distributed.ReduceOp.MAX)
    return bool(total.item())


def agreed(value: Value) -> Value:
    """The value of the first process."""
    if not _together():
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


@contextmanager
def first_process_first() -> Iterator[None]:
    """Let the first process do it alone, and the others find it done (downloads, unpacked archives, caches).

    Where each node has folders of its own, that is the first process of each.
    """
    first = rank() == 0 or (_together() and this_node() is not None and os.environ.get("LOCAL_RANK") == "0")
    if not first:
        barrier()
    yield
    if first:
        barrier()


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()
