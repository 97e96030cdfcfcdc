"""The hardware of this machine."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import cache

import psutil

from mloc_dagster.spec import gpu as gpu_names
from mloc_dagster.spec.resources import Resources

_log = logging.getLogger("mloc")
_AGAIN_SECONDS = 60.0
"""After nvidia-smi has failed, how long it is not asked."""
_failed: list[float] = []
_QUERY = ["nvidia-smi", "--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits"]


@dataclass(frozen=True)
class Device:
    """One GPU: its index, canonical name and memory in bytes."""

    index: int
    name: str
    memory: int


@dataclass(frozen=True)
class Placement:
    """What a stage gets here: device indexes as text (none: the CPU), or the reason why it does not fit."""

    devices: tuple[str, ...] = ()
    on_cpu: bool = True
    note: str = ""
    refusal: str = ""
    worker: str = ""
    """The worker, where it is not this machine as a whole."""


def gpus() -> tuple[Device, ...]:
    """Return the GPUs that nvidia-smi lists; none when there is no driver, or (with a warning) while it fails."""
    if shutil.which(_QUERY[0]) is None or (_failed and time.monotonic() - _failed[-1] < _AGAIN_SECONDS):
        return ()
    try:
        return _listed()
    except (OSError, subprocess.SubprocessError) as error:
        _failed[:] = [time.monotonic()]
        _log.warning("%s does not list the GPUs: %s", _QUERY[0], error)
        return ()


@cache
def _listed() -> tuple[Device, ...]:
    answer = subprocess.run(_QUERY, capture_output=True, text=True, timeout=20, check=True).stdout
    return tuple(device for line in answer.splitlines() if (device := _device(line)) is not None)


def _device(line: str) -> Device | None:
    """The GPU of one line `index, name, MiB`; None, with a warning, when it does not say so."""
    try:
        index, name, memory = (part.strip() for part in line.split(","))
        return Device(int(index), gpu_names.normalise(name), int(float(memory)) << 20)
    except ValueError:  # such as [N/A], where a GPU shares the machine's memory
        _log.warning("%s says %r of a GPU, which is not used", _QUERY[0], line)
        return None


def memory_bytes() -> int:
    """Return the main memory of this machine in bytes."""
    return psutil.virtual_memory().total


def cpu_forced() -> bool:
    """Whether this deployment turns GPU requests into hints (`--on cpu`, or MLOC_ON=cpu)."""
    return os.environ.get("MLOC_ON", "").lower() == "cpu"


def place(resources: Resources, enforce_cpu: bool, on_cpu: bool, available: tuple[Device, ...]) -> Placement:
    """Decide which of the `available` devices a stage gets.

    A stage that asks for no GPU takes one when there is one, except with `count: 0`. A request that cannot be met is
    a refusal unless `on_cpu` makes it a hint.
    """
    gpu = resources.hardware.gpu
    if enforce_cpu or (gpu is not None and gpu.count == 0):
        return Placement()
    if on_cpu:
        asked = f"{gpu.count} × {gpu.type} asked for, run on the CPU" if gpu else ""
        return Placement(note=asked)
    if gpu is None:
        return Placement((str(available[0].index),), False) if available else Placement()
    fitting = [d for d in available if gpu_names.same_device(gpu.type, d.name) and d.memory >= (gpu.memory or 0)]
    if len(fitting) < gpu.count:
        have = ", ".join(f"{device.name}" for device in available) or "none"
        reason = f"needs {gpu.count} × {gpu.type} GPU, this machine has {have}"
        return Placement(refusal=f"{reason}; run it with --on cpu (MLOC_ON=cpu) to take the request as a hint")
    return Placement(tuple(str(device.index) for device in fitting[: gpu.count]), False)
