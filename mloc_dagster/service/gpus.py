"""What the driver tells of the GPUs of this machine: how busy they are, their memory, their power.

Read through NVML (package nvidia-ml-py, which comes with the extra `cuda`); where it is not there, or there is no
driver, nothing is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import TypeVar

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from mloc_dagster.spec import gpu as gpu_names

_LABELS = ["index", "gpu"]
T = TypeVar("T")


def gpu_metrics() -> Iterator[Metric]:
    """Yield the gauges; none where NVML cannot be read."""
    busy = GaugeMetricFamily(
        "mloc_gpu_utilisation_ratio", "Part of the last moment in which it computed.", labels=_LABELS
    )
    memory = GaugeMetricFamily("mloc_gpu_memory_bytes", "Memory.", labels=_LABELS)
    used = GaugeMetricFamily("mloc_gpu_memory_used_bytes", "Memory in use, by whomever.", labels=_LABELS)
    watts = GaugeMetricFamily("mloc_gpu_power_watts", "Power that it draws.", labels=_LABELS)
    with _nvml() as nvml:
        if nvml is None:
            return
        for index in range(_told(nvml, nvml.nvmlDeviceGetCount) or 0):
            handle = _told(nvml, lambda index=index: nvml.nvmlDeviceGetHandleByIndex(index))
            if handle is None:  # lost, or not ours to see
                continue
            name = _told(nvml, lambda handle=handle: nvml.nvmlDeviceGetName(handle)) or "unknown"
            labels = [str(index), gpu_names.normalise(name.decode() if isinstance(name, bytes) else name)]
            rates = _told(nvml, lambda handle=handle: nvml.nvmlDeviceGetUtilizationRates(handle))
            room = _told(nvml, lambda handle=handle: nvml.nvmlDeviceGetMemoryInfo(handle))
            power = _told(nvml, lambda handle=handle: nvml.nvmlDeviceGetPowerUsage(handle))
            if rates is not None:
                busy.add_metric(labels, rates.gpu / 100)
            if room is not None:
                memory.add_metric(labels, room.total)
                used.add_metric(labels, room.used)
            if power is not None:
                watts.add_metric(labels, power / 1000)
    yield from (busy, memory, used, watts)


@contextmanager
def _nvml() -> Iterator[ModuleType | None]:
    try:
        nvml = import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # no package, no driver, or one that does not answer
        yield None
        return
    try:
        yield nvml
    finally:
        _told(nvml, nvml.nvmlShutdown)


def _told(nvml: ModuleType, ask: Callable[[], T]) -> T | None:
    """What the driver answers; None for what this GPU cannot tell."""
    try:
        return ask()
    except nvml.NVMLError:
        return None
