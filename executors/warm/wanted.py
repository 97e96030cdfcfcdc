"""Which stages are worth a warm start."""

from __future__ import annotations

from executors.base import Executor, ExecutorError
from executors.distributed.layout import layout_of
from mloc_dagster.spec.stage import StageSpec


def loads_torch(executor: type[Executor], spec: StageSpec, devices: tuple[str, ...]) -> bool:
    """Whether a stage computes with torch in its own process, not in others that it starts.

    An executor says so by `loads_torch`: true, or a function of the typed `spec`.
    """
    says = getattr(executor, "loads_torch", False)
    spreads = spec.parallel.enabled and hasattr(executor, "merged")
    try:
        if spreads or (getattr(executor, "distributed", False) and layout_of(spec, devices).needs_torchrun):
            return False
        return bool(says(spec) if callable(says) else says)
    except ExecutorError:  # the stage will say so itself
        return False
