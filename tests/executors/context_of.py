"""A context for functions that take one, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from executors.context import TaskContext
from mloc_dagster.spec.stage import StageSpec


def context_of(out: Path, spec: dict[str, Any], **fields: Any) -> TaskContext:
    """Return a context whose typed spec is `spec` (taskType echo unless given)."""
    typed = StageSpec.model_validate({"task_type": "echo"} | spec)
    return TaskContext(task_id="task-1", task_name="test", stage="s", spec=typed, out=out, **fields)
