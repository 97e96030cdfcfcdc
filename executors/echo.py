"""Gives back what it was given: the smallest executor."""

from __future__ import annotations

from executors.base import Result
from executors.context import TaskContext


class EchoExecutor:
    """`echo`: the result holds `spec.echo`, or `spec.task`, or the items of `spec.data`."""

    name = "echo"
    inline = True
    uses = frozenset({"echo", "task", "query", "data.items", "data.task"})
    section = None

    def run(self, ctx: TaskContext) -> Result:
        """Return the first of echo, task, query, data.task and data.items that is given."""
        spec = ctx.spec
        candidates = (spec.echo, spec.task, spec.query, spec.data.task, spec.data.items)
        value = next((item for item in candidates if item is not None), None)
        ctx.progress.update(1, 1, "rows")
        return Result(payload={"ok": True, "echo": value})
