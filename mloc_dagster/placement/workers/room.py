"""What is free on a worker, and whether a need fits there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

from mloc_dagster.placement.inventory import Device
from mloc_dagster.placement.workers.need import WHOLE, GpuNeed, Need
from mloc_dagster.spec.gpu import same_device

State = Literal["ready", "cordoned", "draining", "gone"]
VERBS: Mapping[str, State] = {"drain": "draining", "cordon": "cordoned", "uncordon": "ready"}
"""What people do to workers, and the state that follows."""


@dataclass(frozen=True)
class Worker:
    """One worker: `cpu` in thousandths of a core, `memory` in bytes; only a ready one takes new runs."""

    name: str
    cpu: int
    memory: int
    devices: tuple[Device, ...] = ()
    state: State = "ready"
    _suiting: dict[GpuNeed, tuple[int, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def suiting(self, gpu: GpuNeed) -> tuple[int, ...]:
        """Return the positions of the devices of the kind and size that is asked for, small ones first."""
        if gpu not in self._suiting:
            found = [(device.memory, position) for position, device in enumerate(self.devices) if suits(gpu, device)]
            self._suiting[gpu] = tuple(position for _, position in sorted(found))
        return self._suiting[gpu]


class Room:
    """What is free on a worker; `shares` are thousandths of each of its devices."""

    __slots__ = ("cpu", "memory", "shares", "worker")

    def __init__(self, worker: Worker, cpu: int, memory: int, shares: list[int]) -> None:
        self.worker, self.cpu, self.memory, self.shares = worker, cpu, memory, shares

    @classmethod
    def whole(cls, worker: Worker) -> Room:
        """An empty worker."""
        return cls(worker, worker.cpu, worker.memory, [WHOLE] * len(worker.devices))

    def copy(self) -> Room:
        """Return the same room, to be changed on its own."""
        return Room(self.worker, self.cpu, self.memory, list(self.shares))

    def within(self, other: Room) -> Room:
        """Return what is free both here and there."""
        shares = [min(pair) for pair in zip(self.shares, other.shares, strict=True)]
        return Room(self.worker, min(self.cpu, other.cpu), min(self.memory, other.memory), shares)

    def fit(self, need: Need) -> dict[int, int] | None:
        """Return the thousandths to take by device index, all that the need asks for, or None."""
        if need.cpu > self.cpu or need.memory > self.memory:
            return None
        taken: dict[int, int] = {}
        for gpu in need.gpus:
            picked = self._pick(gpu, taken)
            if len(picked) < gpu.count:
                return None
            taken |= dict.fromkeys(picked[: gpu.count], gpu.share)
        return {self.worker.devices[position].index: share for position, share in taken.items()}

    def _pick(self, gpu: GpuNeed, taken: Mapping[int, int]) -> list[int]:
        """Positions of devices that have the share: small ones first, for a part of one the fuller ones first."""
        shares, share = self.shares, gpu.share
        found = [at for at in self.worker.suiting(gpu) if shares[at] >= share and at not in taken]
        return found if share == WHOLE else sorted(found, key=lambda at: shares[at])

    def take(self, need: Need, devices: Mapping[int, int], sign: int = 1) -> None:
        """Take (or with `sign` -1 give back) a need on certain devices."""
        self.cpu -= sign * need.cpu
        self.memory -= sign * need.memory
        for position, device in enumerate(self.worker.devices):
            self.shares[position] -= sign * devices.get(device.index, 0)


def suits(gpu: GpuNeed, device: Device) -> bool:
    """Whether a device is of the kind and size that is asked for."""
    return device.memory >= gpu.memory and _same(gpu.type, device.name)


_same = cache(same_device)


def preference(room: Room, need: Need, avoid: str = "") -> tuple[bool, bool, int, int, str]:
    """CPU work keeps off workers with GPUs; all work fills workers in use before empty ones, and those but `avoid`."""
    name = room.worker.name
    return (name == avoid, bool(room.worker.devices) and not need.gpus, sum(room.shares), room.cpu, name)


def settled(need: Need, workers: Sequence[Worker]) -> Need | None:
    """Return what a run is to hold given these workers, or None when no worker has such devices.

    An optional GPU is left out when there is none anywhere. Cores and memory beyond what any worker has are cut to the
    largest one, which the run then has for itself: such figures in task files are written for other machines.
    """
    if need.optional and not any(worker.devices for worker in workers):
        need = need.on_cpu
    devices_alone = replace(need, cpu=0, memory=0)
    capable = [worker for worker in workers if Room.whole(worker).fit(devices_alone) is not None]
    if not capable:
        return None
    if any(need.cpu <= worker.cpu and need.memory <= worker.memory for worker in capable):
        return need
    largest = max(capable, key=lambda worker: (min(worker.cpu, need.cpu), min(worker.memory, need.memory)))
    return replace(need, cpu=min(need.cpu, largest.cpu), memory=min(need.memory, largest.memory))


def settled_run(need: Need, stages: Sequence[Need], workers: Sequence[Worker]) -> tuple[Need | None, bool]:
    """Return what a run is to begin with, and whether each of its stages then takes a worker of its own.

    That is so when no one worker has what `need`, the largest of all `stages` together, asks for, but each stage finds
    one that has its part in full. None: some stage finds no worker.
    """
    whole = settled(need, workers)
    if whole is not None and not _is_cut(need, whole):
        return whole, False
    parts = [settled(part, workers) for part in stages]
    if len(parts) < 2 or any(part is None or _is_cut(asked, part) for asked, part in zip(stages, parts, strict=True)):
        return whole, False
    return parts[0], True


def _is_cut(need: Need, given: Need) -> bool:
    return given.cpu < need.cpu or given.memory < need.memory


def shortage(need: Need, rooms: Sequence[Room]) -> str:
    """Say what is missing most on the worker that comes nearest to a need."""
    able = [room for room in rooms if Room.whole(room.worker).fit(need) is not None]
    if not able:
        return "the workers that have it take no new runs"
    best = max(able, key=lambda room: (_met(need, room), room.cpu))
    for gpu in need.gpus:
        count = _free(gpu, best)
        if count < gpu.count:
            return f"{count} free on {best.worker.name}"
    if need.cpu > best.cpu:
        return f"{max(0, best.cpu) / WHOLE:g} cores free on {best.worker.name}"
    return f"too little memory free on {best.worker.name}"


def _met(need: Need, room: Room) -> int:
    return sum(min(gpu.count, _free(gpu, room)) for gpu in need.gpus)


def _free(gpu: GpuNeed, room: Room) -> int:
    return sum(room.shares[position] >= gpu.share for position in room.worker.suiting(gpu))
