"""What all endpoints stand on: the instance, the home, and a few threads for what blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from dagster import DagsterInstance

from mloc_dagster.service.intake import Intake
from mloc_dagster.store.home import Home
from mloc_dagster.telemetry.traces import Traces
from mloc_dagster.usage.table import UsageTable

_THREADS, _LOOKERS = 4, 4
T = TypeVar("T")


@dataclass
class Backend:
    """`knock` wakes the feeders; relative paths in tasks start from `base`."""

    instance: DagsterInstance
    home: Home
    intake: Intake
    usage: UsageTable
    knock: Callable[[], None]
    base: Path
    traces: Traces = field(default_factory=lambda: Traces("web", None))
    _limiter: CapacityLimiter | None = field(default=None, init=False)
    _lookers: CapacityLimiter | None = field(default=None, init=False)

    async def thread(self, work: Callable[[], T]) -> T:
        """Do what blocks in one of a few threads, never on the event loop."""
        if self._limiter is None:
            self._limiter = CapacityLimiter(_THREADS)
        return await to_thread.run_sync(work, limiter=self._limiter)

    async def look(self, work: Callable[[], T]) -> T:
        """Do the same for who looks again and again, in threads of their own: nothing that is asked once waits."""
        if self._lookers is None:
            self._lookers = CapacityLimiter(_LOOKERS)
        return await to_thread.run_sync(work, limiter=self._lookers)
