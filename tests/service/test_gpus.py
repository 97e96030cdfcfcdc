"""GPU gauges from a driver's library that is not there, is there, or knows only part."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from mloc_dagster.service.gpus import gpu_metrics


class NVMLError(Exception):
    """What NVML raises."""


def library(*, shut: list[str], power: bool = True) -> SimpleNamespace:
    """An NVML of two GPUs, the second of which is lost."""

    def handle(index: int) -> int:
        if index == 1:
            raise NVMLError("lost")
        return index

    def watts(_handle: int) -> int:
        if not power:
            raise NVMLError("not supported")
        return 312_500

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: shut.append("shut"),
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=handle,
        nvmlDeviceGetName=lambda _handle: b"NVIDIA A100-SXM4-80GB",
        nvmlDeviceGetUtilizationRates=lambda _handle: SimpleNamespace(gpu=37, memory=5),
        nvmlDeviceGetMemoryInfo=lambda _handle: SimpleNamespace(total=80 << 30, used=8 << 30),
        nvmlDeviceGetPowerUsage=watts,
    )


def told() -> dict[str, tuple[dict[str, str], float]]:
    """The one sample of each family."""
    return {one.name: (one.samples[0].labels, one.samples[0].value) for one in gpu_metrics() if one.samples}


def test_what_the_driver_tells_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    shut: list[str] = []
    monkeypatch.setitem(sys.modules, "pynvml", library(shut=shut))
    labels = {"index": "0", "gpu": "a100-80gb"}
    assert told() == {
        "mloc_gpu_utilisation_ratio": (labels, 0.37), "mloc_gpu_memory_bytes": (labels, 80 << 30),
        "mloc_gpu_memory_used_bytes": (labels, 8 << 30), "mloc_gpu_power_watts": (labels, 312.5),
    }  # fmt: skip
    assert shut == ["shut"]


def test_what_it_cannot_tell_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library(shut=[], power=False))
    assert "mloc_gpu_power_watts" not in told() and "mloc_gpu_utilisation_ratio" in told()


def test_without_a_driver_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = library(shut=[])
    broken.nvmlInit = lambda: (_ for _ in ()).throw(NVMLError("no driver"))
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    assert list(gpu_metrics()) == []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert list(gpu_metrics()) == []
