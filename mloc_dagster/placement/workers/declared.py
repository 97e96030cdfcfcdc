"""`workers.yaml`: the workers of this machine as a person declares them, in place of what is found.

Several workers share one machine out: each GPU belongs to one of them. Cores and memory are those that are given out
to runs, not measured. The file lies in the home, or where MLOC_WORKERS says.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from mloc_dagster.placement.inventory import Device
from mloc_dagster.placement.workers.detect import this_machine
from mloc_dagster.placement.workers.need import WHOLE
from mloc_dagster.placement.workers.room import Worker
from mloc_dagster.spec import gpu as gpu_names
from mloc_dagster.spec.base import Bytes, Cpu, NotNegative, Section
from mloc_dagster.spec.canonical import canonicalise
from mloc_dagster.spec.document import NAME
from mloc_dagster.spec.faults import Fault, SpecError, shown, without_echoes
from mloc_dagster.spec.resources import GpuName
from mloc_dagster.spec.tree import Mapping, Origin, read
from mloc_dagster.spec.typed import origin_at, validate
from mloc_dagster.store.home import Home

_WAY_OUT = "write a number above 0, as much as runs may have of this machine"


class Gpus(Section):
    """GPUs of one kind."""

    type: GpuName
    """Device name such as a100-80gb."""
    indexes: Annotated[list[NotNegative], Field(min_length=1)]
    """Their numbers on this machine, as nvidia-smi lists them."""
    memory: Bytes | None = None
    """Memory of each; where it is left out, what the name tells."""


class Declared(Section):
    """One worker."""

    name: Annotated[str, Field(pattern=NAME)]
    """How it is called."""
    cpu: Cpu
    """Cores: 8, 0.5 or 500m."""
    memory: Bytes
    """Memory: 64Gi, 32GiB; 1024-based."""
    gpus: tuple[Gpus, ...] = ()
    """GPUs."""


class WorkersFile(Section):
    """The whole file."""

    workers: Annotated[list[Declared], Field(min_length=1)]
    """Workers of this machine."""


def workers_of(home: Home) -> tuple[Worker, ...]:
    """Return this machine's workers: those of the file if there is one, else the machine as it is found.

    Raises SpecError with every fault of the file.
    """
    path = Path(os.environ.get("MLOC_WORKERS") or home.root / "workers.yaml")
    if path.is_file():
        return load_workers(path)
    if os.environ.get("MLOC_WORKERS"):
        raise SpecError([Fault(0, 0, "", "MLOC_WORKERS names no file", "", "check the path, or unset it", str(path))])
    return (this_machine(),)


def load_workers(path: Path) -> tuple[Worker, ...]:
    """Read a file of workers; raises SpecError with every fault."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError([Fault(0, 0, "", "cannot be read", str(error)[:80], "save it as UTF-8", str(path))]) from None
    return _parsed(text, str(path))


@lru_cache(maxsize=4)
def _parsed(text: str, file: str) -> tuple[Worker, ...]:
    tree, faults = read(text)
    if not isinstance(tree, Mapping) and not faults:
        faults.append(Fault(1, 1, "", "must be a map", shown(tree), "start with workers:"))
    if isinstance(tree, Mapping):
        tree = canonicalise(tree, WorkersFile, faults)
        typed, deferred, wrong = validate(tree, WorkersFile, Origin((), (1, 1), (1, 1)))
        faults.extend(wrong)
        if deferred:
            faults.append(Fault(1, 1, deferred[0], "holds a reference", "", "write a value; only task files refer"))
        if typed is not None and not faults:
            faults.extend(_conflicts(typed, tree))
            if not faults:
                return tuple(_worker(one) for one in typed.workers)
    raise SpecError([fault.in_file(file) for fault in without_echoes(faults)])


def _conflicts(file: WorkersFile, tree: Mapping) -> list[Fault]:
    faults: list[Fault] = []

    def fault(location: tuple[str | int, ...], what: str, value: object, way_out: str) -> None:
        origin = origin_at(tree, location)
        assert origin is not None
        faults.append(Fault(*origin.value, origin.text, what, shown(value), way_out))

    names: set[str] = set()
    owners: dict[int, str] = {}
    for number, worker in enumerate(file.workers):
        here = ("workers", number)
        if worker.name in names:
            fault((*here, "name"), "is the name of another worker, too", worker.name, "give each a name of its own")
        names.add(worker.name)
        for key in ("cpu", "memory"):
            if not getattr(worker, key):
                fault((*here, key), "is nothing", getattr(worker, key), _WAY_OUT)
        for group, gpus in enumerate(worker.gpus):
            for index in gpus.indexes:
                if index in owners:
                    place = (*here, "gpus", group, "indexes")
                    fault(place, f"GPU {index} belongs to {owners[index]} already", index, "give it to one worker")
                owners[index] = worker.name
    return faults


def _worker(declared: Declared) -> Worker:
    devices = [
        Device(
            index,
            group.type,
            group.memory if group.memory is not None else (gpu_names.memory_gib(group.type) or 0) << 30,
        )
        for group in declared.gpus
        for index in group.indexes
    ]
    ordered = tuple(sorted(devices, key=lambda device: device.index))
    return Worker(declared.name, round(declared.cpu * WHOLE), declared.memory, ordered)
