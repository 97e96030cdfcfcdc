"""Scores of single rows: all of them in a file, the first of them in the result."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence

from executors.base import ExecutorError
from executors.context import TaskContext
from mloc_dagster.files.atomic import write_text
from mloc_dagster.spec.base import Json

FILE = "rows.jsonl"
MOST_IN_RESULT = 1000
"""Rows beyond this stay in the file, so that the result can be read at once."""


def kept_rows(ctx: TaskContext, rows: Sequence[dict[str, Json]]) -> dict[str, Json]:
    """Write `rows.jsonl` and return the part of the result that tells of the rows."""
    path = ctx.out / FILE
    write_text(path, "".join(json.dumps(ctx.redact(row), ensure_ascii=False) + "\n" for row in rows))
    return {"rows": list(rows[:MOST_IN_RESULT]), "rows_total": len(rows), "rows_path": str(path)}


def rows_digest(rows: Iterable[Json]) -> str:
    """Return `sha256:<hex>` of what was asked and expected, so that only scores of the same rows are compared."""
    told = json.dumps(list(rows), ensure_ascii=False, sort_keys=True, default=str)
    return f"sha256:{hashlib.sha256(told.encode()).hexdigest()}"


def mean(metric: str, values: Sequence[float]) -> float:
    """Return the mean over the rows; raises ExecutorError naming the first row whose value is not finite."""
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise ExecutorError(f"The {metric} of row {index} is {value}.", "Look at the row and at what scores it.")
    return math.fsum(values) / len(values)
