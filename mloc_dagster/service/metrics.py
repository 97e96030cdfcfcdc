"""`/metrics` in the text format of Prometheus.

What counts up comes from the sums of usage and outlives a restart; gauges are looked up. A scrape costs a handful of
queries whatever the history, and two within a second share one answer.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator

from dagster import DagsterRunStatus, RunsFilter
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from starlette.requests import Request
from starlette.responses import Response

from executors.serving.registry import EngineFolder
from mloc_dagster.placement.ledger import Ledger
from mloc_dagster.placement.ledger.rows import worker_rows
from mloc_dagster.placement.queue.scheduler import VIEW
from mloc_dagster.service.backend import Backend
from mloc_dagster.service.gpus import gpu_metrics
from mloc_dagster.spec.base import Json
from mloc_dagster.usage.entries import CPU
from mloc_dagster.usage.table import Chosen, Total

_SAME_SECONDS = 1.0
_SPREAD_SECONDS = 15.0
_BOUNDS = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)
_GOING = (
    DagsterRunStatus.QUEUED, DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTING, DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
)  # fmt: skip
_ENDED = ("succeeded", "failed", "canceled")


class Metrics:
    """Collects what is true now."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self._ledger = backend, Ledger.of_instance(backend.instance)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self._lock = asyncio.Lock()
        self._spread: tuple[float, tuple[list[int], list[int]]] = (-_SPREAD_SECONDS, ([], []))
        self._told: tuple[float, bytes] = (-_SAME_SECONDS, b"")

    async def answer(self, _request: Request) -> Response:
        """Answer a scrape with the metrics of now, or of less than a second ago; those who wait hold no thread."""
        async with self._lock:
            at, told = self._told
            if time.monotonic() - at >= _SAME_SECONDS:
                told = await self._backend.look(lambda: generate_latest(self._registry))
                self._told = time.monotonic(), told
        return Response(told, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def describe(self) -> list[Metric]:
        """Name nothing beforehand: there is nothing to clash with."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        yield from self._queue()
        yield from self._history()
        yield from self._hardware()
        yield from self._engines()
        yield from gpu_metrics()

    def _queue(self) -> Iterator[Metric]:
        going = GaugeMetricFamily("mloc_tasks", "Tasks that are not over, by status.", labels=["status"])
        accepted = self._backend.intake.count()
        going.add_metric(["ACCEPTED"], accepted)
        for status in _GOING:
            going.add_metric([status.value], self._backend.instance.get_runs_count(RunsFilter(statuses=[status])))
        yield going
        view = self._ledger.saved(VIEW) or {}
        depth = GaugeMetricFamily("mloc_queue_depth", "Runs that wait, as the daemon last saw them.")
        depth.add_metric([], view.get("waiting", 0))
        yield depth
        oldest = GaugeMetricFamily("mloc_queue_oldest_seconds", "How long the first of those that wait has waited.")
        first: list[Json] = view.get("first", [])
        oldest.add_metric([], max((time.time() - row["submitted"] for row in first), default=0.0))
        yield oldest

    def _history(self) -> Iterator[Metric]:
        sums = self._backend.usage.totals(Chosen()).by_gpu
        whole = sum(sums.values(), Total())
        ended = CounterMetricFamily("mloc_tasks_ended", "Runs that are over, by how they ended.", labels=["status"])
        for name in _ENDED:
            ended.add_metric([name], getattr(whole, name))
        yield ended
        yield from self._spreads(sum(getattr(whole, name) for name in _ENDED), whole)
        retries = "Attempts at steps beyond the first of each."
        yield CounterMetricFamily("mloc_step_retries", retries, value=whole.retries)
        slo = CounterMetricFamily(
            "mloc_slo", "Runs with an SLO that succeeded, by whether they met it.", labels=["met"]
        )
        slo.add_metric(["true"], whole.slo_met)
        slo.add_metric(["false"], whole.slo_breached)
        yield slo
        tokens = CounterMetricFamily("mloc_tokens", "Tokens that results tell of.", labels=["kind"])
        tokens.add_metric(["prompt"], whole.prompt_tokens)
        tokens.add_metric(["completion"], whole.completion_tokens)
        yield tokens
        yield CounterMetricFamily("mloc_cpu_seconds", "Core-seconds that runs held.", value=whole.cpu_us / 1e6)
        seconds = CounterMetricFamily("mloc_gpu_seconds", "Device-seconds that runs held.", labels=["gpu"])
        for gpu in sorted(sums.keys() - {CPU}):
            seconds.add_metric([gpu], sums[gpu].device_us / 1e6)
        yield seconds

    def _spreads(self, over: int, whole: Total) -> Iterator[Metric]:
        """Waits and durations by how long; the runs are counted through at most once in a while."""
        at, spreads = self._spread
        if time.monotonic() - at >= _SPREAD_SECONDS:
            usage = self._backend.usage
            spreads = usage.spread("queue_ms", _BOUNDS), usage.spread("run_ms", _BOUNDS)
            self._spread = time.monotonic(), spreads
        waits, runs = spreads
        told = "Wait of runs that are over, in the queue: from when they were made to their start."
        yield HistogramMetricFamily("mloc_queue_wait_seconds", told, _buckets(waits, over), whole.queue_ms / 1000)
        told = "Runs that began and are over, and how long they took."
        yield HistogramMetricFamily("mloc_run_seconds", told, _buckets(runs, whole.started), whole.run_ms / 1000)

    def _hardware(self) -> Iterator[Metric]:
        rows = worker_rows(*self._ledger.snapshot())
        states = GaugeMetricFamily("mloc_workers", "Workers by state.", labels=["state"])
        for state, count in sorted(Counter("silent" if row["silent"] else row["state"] for row in rows).items()):
            states.add_metric([state], count)
        yield states
        devices = GaugeMetricFamily("mloc_devices", "Devices.", labels=["worker", "gpu"])
        used = GaugeMetricFamily(
            "mloc_devices_held", "Devices that runs hold, parts of one too.", labels=["worker", "gpu"]
        )
        cores = GaugeMetricFamily("mloc_cores", "Cores.", labels=["worker"])
        cores_held = GaugeMetricFamily("mloc_cores_held", "Cores that runs hold.", labels=["worker"])
        for row in rows:
            for gpu in sorted({device["name"] for device in row["devices"]}):
                these = [device for device in row["devices"] if device["name"] == gpu]
                devices.add_metric([row["name"], gpu], len(these))
                used.add_metric([row["name"], gpu], sum(device["held"] for device in these))
            cores.add_metric([row["name"]], row["cpu"]["total"])
            cores_held.add_metric([row["name"]], row["cpu"]["held"])
        yield from (devices, used, cores, cores_held)

    def _engines(self) -> Iterator[Metric]:
        found: Counter[str] = Counter()
        root = self._backend.home.cache / "engines"
        for path in root.glob("*/engine.json"):
            state = EngineFolder(root, path.parent.name).state()
            if state is not None:
                found["loading" if not state.ready else "busy" if state.idle_since is None else "idle"] += 1
        engines = GaugeMetricFamily("mloc_engines", "Warm engines by what they do.", labels=["state"])
        for state in ("loading", "busy", "idle"):
            engines.add_metric([state], found[state])
        yield engines


def _buckets(counts: list[int], whole: int) -> list[tuple[str, float]]:
    """Buckets of a histogram; the sums may be newer than the buckets, never older."""
    bounded = [(f"{float(bound)}", float(count)) for bound, count in zip(_BOUNDS, counts, strict=True)]
    return [*bounded, ("+Inf", float(max([whole, *counts])))]
