"""How many shards, which rows each has, and where it runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from executors.context import TaskContext
from executors.prompts import PromptRows
from executors.serving.engines import keeps_engines
from mloc_dagster.files.atomic import write_json
from mloc_dagster.spec.stage import StageSpec

_LAYOUT = "layout.json"


@dataclass(frozen=True)
class Layout:
    """Rows of each shard in order, and the devices of each place in which one can run (none: the CPU)."""

    rows: tuple[PromptRows, ...]
    places: tuple[tuple[str, ...], ...]
    threads: int | None
    """Threads of a shard that loads the model itself on the CPU."""


def layout_of(ctx: TaskContext, source: PromptRows, folder: Path) -> Layout:
    """Return the layout of a stage: as many shards as find room, at least `replicas`, at most `max_shards`.

    What an earlier attempt began in `folder` keeps its shards, whatever room there is now. A shard takes as many of
    the granted devices as its engine spreads over; without devices there is room for one a core, or for one on each
    `hardware.cpu` cores. More shards than find room run at the same time where they share a warm engine.
    """
    groups = _device_groups(ctx)
    room = len(groups) or _cores_room(ctx.spec)
    most = min(ctx.spec.parallel.max_shards, len(source.rows))
    rows = _digest(source)
    count = _begun(folder, rows)
    if count is None:
        shutil.rmtree(folder, ignore_errors=True)  # shards of other rows
        count = min(most, max(room, ctx.spec.resources.replicas))
        write_json(folder / _LAYOUT, {"shards": count, "rows": rows})
    shared = keeps_engines(ctx)
    places = count if shared else min(count, room)
    cores = len(os.sched_getaffinity(0))
    return Layout(
        rows=tuple(replace(source, rows=source.rows[part]) for part in parts(len(source.rows), count)),
        places=tuple(groups[place % len(groups)] if groups else () for place in range(places)),
        threads=None if groups or shared else max(1, cores // places),
    )


def parts(rows: int, count: int) -> list[slice]:
    """Split rows into `count` ranges that differ by one row at most; together they are all rows in order."""
    return [slice(rows * index // count, rows * (index + 1) // count) for index in range(count)]


def _device_groups(ctx: TaskContext) -> list[tuple[str, ...]]:
    """The granted devices, each group enough for one engine."""
    devices, model = ctx.devices, ctx.spec.model
    if not devices or ctx.spec.enforce_cpu:
        return []
    spread = model.transformers is not None and model.transformers.device_map is not None and model.vllm is None
    size = len(devices) if spread else min(model.vllm.tensor_parallel_size if model.vllm else 1, len(devices))
    return [devices[start : start + size] for start in range(0, len(devices) - size + 1, size)]


def _cores_room(spec: StageSpec) -> int:
    return max(1, len(os.sched_getaffinity(0)) // max(1, ceil(spec.resources.hardware.cpu or 1)))


def _begun(folder: Path, rows: str) -> int | None:
    try:
        begun = json.loads((folder / _LAYOUT).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return begun["shards"] if begun["rows"] == rows else None


def _digest(source: PromptRows) -> str:
    found = hashlib.sha256()
    for row in source.rows:
        found.update(json.dumps([row.index, row.prompt, row.metadata], default=str).encode())
    return found.hexdigest()
