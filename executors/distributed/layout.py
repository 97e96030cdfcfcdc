"""How many processes train, and on which devices."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from executors.base import ExecutorError
from executors.distributed.nodes import Node, this_node
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.stage import StageSpec


@dataclass(frozen=True)
class Layout:
    """`replicas` groups of `per_node` processes each; `devices` are those granted, in the order of use.

    With a `node`, other groups are elsewhere, as many as there are nodes, and this one has one group.
    """

    replicas: int = 1
    per_node: int = 1
    devices: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    sharded: bool = False
    """Whether DeepSpeed or FSDP spreads the weights, which needs a process group even for one process."""
    node: Node | None = None

    @property
    def needs_torchrun(self) -> bool:
        """Whether processes must be started and brought together."""
        return self.processes > 1 or self.sharded or self.node is not None

    @property
    def processes(self) -> int:
        """How many there are on this machine."""
        return self.replicas * self.per_node

    @property
    def ranks(self) -> range:
        """The numbers of these processes among all."""
        first = self.node.rank * self.per_node if self.node else 0
        return range(first, first + self.processes)

    def devices_of(self, replica: int) -> tuple[str, ...]:
        """The devices of one group."""
        share = len(self.devices) // self.replicas
        return self.devices[replica * share : (replica + 1) * share]


def layout_of(spec: StageSpec, devices: tuple[str, ...]) -> Layout:
    """Return the layout that a training stage asks for on the devices that it was granted (none: the CPU).

    With several devices there is one process a device, unless `allow_multi_gpu: false` or `nproc_per_node` say less.
    On a CPU there is one process, or `nproc_per_node`. `resources.replicas` multiplies; where each replica is a node of
    its own, the devices are those of this one. Raises ExecutorError when they cannot be shared out evenly.
    """
    training, node = spec.training, this_node()
    replicas = 1 if node else spec.resources.replicas
    warnings: list[str] = []
    if not devices:
        keys = ("visible_devices", "primary_gpu", "allow_multi_gpu")
        given = [key for key in keys if getattr(training, key) is not None]
        warnings += [f"training.{key} counts only on a GPU" for key in given]
        return Layout(replicas, training.nproc_per_node or 1, (), tuple(warnings), node=node)
    devices = _ordered(devices, training.visible_devices, training.primary_gpu, warnings)
    if len(devices) % replicas:
        raise ExecutorError(
            f"{len(devices)} devices cannot be shared evenly by resources.replicas {replicas}.",
            "Ask for a multiple of replicas.",
        )
    share = len(devices) // replicas
    per_node = min(training.nproc_per_node or share, share)
    if training.nproc_per_node and training.nproc_per_node > share:
        warnings.append(f"training.nproc_per_node {training.nproc_per_node}: {share} devices were granted, so {share}")
    if training.allow_multi_gpu is False and per_node > 1:
        warnings.append(f"training.allow_multi_gpu is false: one of {share} granted devices is used")
        per_node = 1
    used = [device for one in range(replicas) for device in devices[one * share : one * share + per_node]]
    sharded = bool(training.deepspeed or training.auto_deepspeed or training.fsdp)
    return Layout(replicas, per_node, tuple(used), tuple(warnings), sharded, node)


def is_rank() -> bool:
    """Whether this process is one of several that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def ended(out: Path, rank: int) -> Path:
    """Where a process writes its exit code as its last deed; one that was killed writes none."""
    return out / "logs" / f"rank-{rank}.ended"


def visible(devices: tuple[str, ...]) -> str:
    """Value of CUDA_VISIBLE_DEVICES for device names such as `0` or `cuda:0`."""
    return ",".join(device.removeprefix("cuda:") for device in devices)


def _ordered(devices: tuple[str, ...], visible: Json, primary: int | None, warnings: list[str]) -> tuple[str, ...]:
    """Apply `visible_devices` and `primary_gpu`; both count the devices that were granted, from 0."""
    positions = _positions(visible)
    usable = [position for position in positions if position < len(devices)]
    if positions and len(usable) < len(positions):
        warnings.append(f"training.visible_devices {visible}: only {len(devices)} devices were granted")
    chosen = [devices[position] for position in usable] or list(devices)
    if primary is None:
        return tuple(chosen)
    if primary >= len(devices) or devices[primary] not in chosen:
        warnings.append(f"training.primary_gpu {primary} is not among the {len(chosen)} devices in use")
        return tuple(chosen)
    first = devices[primary]
    return (first, *(device for device in chosen if device != first))


def _positions(visible: Json) -> list[int]:
    if visible is None:
        return []
    parts = visible if isinstance(visible, list) else str(visible).split(",")
    texts = [str(part).strip().removeprefix("cuda:") for part in parts]
    if not all(text.isdigit() for text in texts):
        raise ExecutorError(f"training.visible_devices is {visible!r}.", "Write numbers from 0, such as [0, 1].")
    return list(dict.fromkeys(int(text) for text in texts))
