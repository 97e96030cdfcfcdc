"""Rows that failed alone: their items say why, and `artifacts/error_rows.jsonl` holds them for another try."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from executors.base import ExecutorError
from executors.context import TaskContext
from mloc_dagster.files.atomic import write_text
from mloc_dagster.spec.base import Json

_COLUMNS = ("index", "prompt", "error")


def is_error(item: Mapping[str, Json]) -> bool:
    """Whether an item has no text because something was wrong with its prompt."""
    return item["finish_reason"] == "error"


def check_some_worked(items: Sequence[Mapping[str, Json]]) -> None:
    """Raise ExecutorError when every row failed: then it is the stage that is wrong, not its rows."""
    if items and all(map(is_error, items)):
        rows = "The row" if len(items) == 1 else f"All {len(items)} rows"
        raise ExecutorError(f"{rows} failed; the first one with: {items[0]['error']}", "Mend the prompts or the model.")


def set_apart(ctx: TaskContext, items: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
    """Write the rows that failed, metadata beside the prompt, so that the file can be the data of another stage.

    Returns `error_rows{count, path, rows, metadata_columns}` for the result, or nothing.
    """
    failed = [item for item in items if is_error(item)]
    if not failed:
        return {}
    path = ctx.out / "artifacts" / "error_rows.jsonl"
    kept = [{**item["metadata"], **{name: item[name] for name in _COLUMNS}} for item in failed]
    columns = dict.fromkeys(name for item in failed for name in item["metadata"] if name not in _COLUMNS)
    write_text(path, "".join(json.dumps(ctx.redact(row), ensure_ascii=False) + "\n" for row in kept))
    rows = [item["index"] for item in failed]
    return {
        "error_rows": {"count": len(failed), "path": str(path), "rows": rows, "metadata_columns": list(columns)},
    }
