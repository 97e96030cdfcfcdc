"""What shards have together: sums, and what a person should know of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from executors.base import ExecutorError, Result
from mloc_dagster.spec.base import Json

_LONGEST = "latency_sec"
"""Shards work at the same time, so it is the longest of them that counts."""


@dataclass(frozen=True)
class Shard:
    """A shard that is done: its number of rows, the attempts that it took, its folder and its result."""

    index: int
    rows: int
    attempts: int
    folder: Path
    result: Result


def merged_usage(shards: Sequence[Shard]) -> dict[str, Json]:
    """Tokens and requests of all shards together; seconds are those of the slowest."""
    usages = [shard.result.payload["usage"] for shard in shards]
    return {
        name: max(usage[name] for usage in usages) if name == _LONGEST else sum(usage[name] for usage in usages)
        for name in usages[0]
    }


def merged_metadata(shards: Sequence[Shard]) -> dict[str, Json]:
    """How the work was done, as the first shard tells it, with the warnings of all.

    Raises ExecutorError when shards used different weights: the model was changed while they ran.
    """
    told = [shard.result.metadata for shard in shards]
    if len({one.get("weights_digest") for one in told}) > 1:
        raise ExecutorError("The model's weights changed while the shards ran.", "Run the stage again with --fresh.")
    warnings = dict.fromkeys(warning for one in told for warning in one.get("warnings", []))
    return {**told[0], "warnings": list(warnings)}


def told_of(shards: Sequence[Shard]) -> list[Json]:
    """The `shards` of a result (SPEC §12)."""
    return [
        {"index": shard.index, "rows": shard.rows, "attempts": shard.attempts, "usage": shard.result.payload["usage"]}
        for shard in shards
    ]
