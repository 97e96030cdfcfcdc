"""What a run needs of one worker: cores, memory and GPUs, all at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import groupby

from mloc_dagster.spec import gpu as gpu_names
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.quantity import format_bytes
from mloc_dagster.spec.stage import StageSpec
from mloc_dagster.spec.task_types import known

_TOO_MANY = 1 << 62
"""What databases count with."""
WHOLE = 1000
"""A whole device, or a whole core, in the thousandths that are counted."""


@dataclass(frozen=True)
class GpuNeed:
    """So many devices of one kind; `memory` in bytes each must have, `share` in thousandths of each."""

    type: str
    count: int
    memory: int = 0
    share: int = WHOLE

    def __str__(self) -> str:
        part = f"{self.share / WHOLE:g} of " if self.share < WHOLE else ""
        memory = f" with {format_bytes(self.memory)}" if self.memory else ""
        return f"{self.count} × {part}{self.type} GPU{memory}"


@dataclass(frozen=True)
class Need:
    """`cpu` in thousandths of a core, `memory` in bytes; an `optional` GPU is taken where there is any at all."""

    cpu: int = WHOLE
    memory: int = 0
    gpus: tuple[GpuNeed, ...] = ()
    optional: bool = False

    def __str__(self) -> str:
        cores = f"{self.cpu / WHOLE:g} {'core' if self.cpu == WHOLE else 'cores'}"
        return ", ".join([*map(str, self.gpus), cores, *([format_bytes(self.memory)] if self.memory else [])])

    def as_dict(self) -> dict[str, Json]:
        """Return the parts as JSON values."""
        return {**asdict(self), "gpus": [asdict(gpu) for gpu in self.gpus]}

    @classmethod
    def from_dict(cls, parts: dict[str, Json]) -> Need:
        """Return the need of `as_dict`; raises TypeError, KeyError or ValueError when the parts are not those."""
        need = cls(**{**parts, "gpus": tuple(GpuNeed(**gpu) for gpu in parts["gpus"])})
        numbers = [need.cpu, need.memory, *(n for gpu in need.gpus for n in (gpu.count, gpu.memory, gpu.share))]
        if not all(type(one) is int and 0 <= one < _TOO_MANY for one in numbers):
            raise ValueError("a need is counted in whole numbers, none below 0")
        if not all(type(gpu.type) is str for gpu in need.gpus) or type(need.optional) is not bool:
            raise TypeError("a kind of GPU is a text, and optional true or false")
        return need

    @property
    def on_cpu(self) -> Need:
        """The same without any GPU."""
        return Need(self.cpu, self.memory)


def need_of(stages: list[tuple[StageSpec, bool]]) -> Need:
    """Return the largest need over stages, each given with whether its task type can use a GPU.

    A run is placed as a whole, so it holds at all times what its largest stages need: the most cores, the most memory,
    and of each kind of GPU the most that one stage asks for. Cores and memory are those of each replica of a training,
    GPUs those of all.
    """
    specs = [spec for spec, _ in stages]
    cpu = max(map(_cores, specs), default=0) or WHOLE
    memory = max(((spec.resources.hardware.memory or 0) * replicas_of(spec) for spec in specs), default=0)
    asked = [one for spec, _ in stages if (one := _asked(spec)) is not None]
    if asked:
        return Need(cpu, memory, _largest(asked))
    wanted = any(uses_gpu and _leaves_it_open(spec) for spec, uses_gpu in stages)
    return Need(cpu, memory, (GpuNeed(gpu_names.ANY, 1),) if wanted else (), optional=wanted)


def replicas_of(spec: StageSpec) -> int:
    """Return in how many groups of processes a stage trains; what trains nothing has one."""
    return spec.resources.replicas if known()[spec.task_type].trains else 1


def _cores(spec: StageSpec) -> int:
    """Thousandths of cores; one for each replica where a stage asks for none."""
    cpu, replicas = spec.resources.hardware.cpu, replicas_of(spec)
    return (round(cpu * WHOLE) if cpu else WHOLE if replicas > 1 else 0) * replicas


def _asked(spec: StageSpec) -> GpuNeed | None:
    gpu = spec.resources.hardware.gpu
    if gpu is None or gpu.count == 0 or spec.enforce_cpu:
        return None
    return GpuNeed(gpu.type, gpu.count, gpu.memory or 0, max(1, round(gpu.share * WHOLE)))


def _leaves_it_open(spec: StageSpec) -> bool:
    return spec.resources.hardware.gpu is None and not spec.enforce_cpu


def _largest(asked: list[GpuNeed]) -> tuple[GpuNeed, ...]:
    """One need for each type; that for any device is left out where the others' devices serve for it."""
    by_type = groupby(sorted(asked, key=lambda one: one.type), key=lambda one: one.type)
    merged = {
        name: GpuNeed(name, max(o.count for o in ones), max(o.memory for o in ones), max(o.share for o in ones))
        for name, group in by_type
        if (ones := list(group))
    }
    anything = merged.pop(gpu_names.ANY, None)
    named = tuple(merged.values())
    if anything is None:
        return named
    serving = sum(one.count for one in named if one.memory >= anything.memory and one.share >= anything.share)
    return named if serving >= anything.count else (*named, anything)
