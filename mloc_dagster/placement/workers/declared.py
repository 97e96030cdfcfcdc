"""`workers.yaml`: workers as a person declares them, in place of what is found: parts of this machine, and engines.

Several workers share one machine out: each GPU belongs to one of them. Cores and memory are those that are given out
to runs, not measured. A worker with a `docker` section is a machine with a Docker Engine: stages run in containers
there, and files go over the artifact store; one with a `kubernetes` section is a kind of nodes of a cluster, where
stages run as Jobs; one with a `pull` section is a machine that connects to the service by itself. The file lies in the
home, or where MLOC_WORKERS says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field

from mloc_dagster.placement.inventory import Device
from mloc_dagster.placement.workers.cluster import Kubernetes, faults_of_cluster
from mloc_dagster.placement.workers.detect import this_machine
from mloc_dagster.placement.workers.engine import Docker, faults_of
from mloc_dagster.placement.workers.need import WHOLE
from mloc_dagster.placement.workers.outbound import Pull, Registry, joined
from mloc_dagster.placement.workers.room import Worker
from mloc_dagster.spec import gpu as gpu_names
from mloc_dagster.spec.base import Bytes, Cpu, NotNegative, Positive, Section
from mloc_dagster.spec.document import NAME
from mloc_dagster.spec.faults import Fault, SpecError, shown, without_echoes
from mloc_dagster.spec.resources import GpuName
from mloc_dagster.spec.settings import parse, read_text
from mloc_dagster.spec.tree import Mapping as Tree
from mloc_dagster.spec.typed import origin_at
from mloc_dagster.store.home import Home

ARTIFACTS = "MLOC_ARTIFACTS"
Engine = Docker | Kubernetes | Pull
_Found = tuple[tuple[str | int, ...], str, object, str]
"""A fault: where in the section, what is wrong, the value, the way out."""
_WAY_OUT = "write a number above 0, as much as runs may have of this machine"


class Gpus(Section):
    """GPUs of one kind."""

    type: GpuName
    """Device name such as a100-80gb."""
    indexes: Annotated[list[NotNegative], Field(min_length=1)] | None = None
    """Their numbers on this machine, as nvidia-smi lists them."""
    count: Positive | None = None
    """How many a cluster has for stages, in place of numbers."""
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
    docker: Docker | None = None
    """The Docker Engine that runs its stages; left out, they run on this machine."""
    kubernetes: Kubernetes | None = None
    """The cluster that runs its stages."""
    pull: Pull | None = None
    """A machine that connects to the service and asks for its stages."""

    @property
    def engine(self) -> Engine | None:
        """What runs its stages, where that is not this machine."""
        return self.docker or self.kubernetes or self.pull


class WorkersFile(Section):
    """The whole file."""

    workers: Annotated[list[Declared], Field(min_length=1)]
    """Workers."""
    artifacts: str | None = None
    """Where machines leave files for each other: s3://bucket/prefix, or file:///folder that all of them mount."""


@dataclass(frozen=True)
class Fleet:
    """All workers, those of them that are engines, by name, and the artifact store."""

    workers: tuple[Worker, ...]
    engines: Mapping[str, Engine] = field(default_factory=dict)
    artifacts: str = ""


def workers_of(home: Home) -> tuple[Worker, ...]:
    """Return the workers: those of the file if there is one, else this machine as it is found.

    Raises SpecError with every fault of the file.
    """
    return fleet_of(home).workers


def fleet_of(home: Home) -> Fleet:
    """Return the workers and their engines, with those that have connected by themselves.

    Raises SpecError with every fault of the file.
    """
    path = Path(os.environ.get("MLOC_WORKERS") or home.root / "workers.yaml")
    if not path.is_file() and os.environ.get("MLOC_WORKERS"):
        raise SpecError([Fault(0, 0, "", "MLOC_WORKERS names no file", "", "check the path, or unset it", str(path))])
    fleet = load_fleet(path) if path.is_file() else Fleet((this_machine(),))
    pulling = {name: engine for name, engine in fleet.engines.items() if isinstance(engine, Pull)}
    workers = joined(fleet.workers, pulling, Registry(home))
    entered = {worker.name: Pull() for worker in workers[len(fleet.workers) :]}
    if not pulling and not entered:
        return fleet
    store = fleet.artifacts or _artifacts_given() or f"file://{home.root / 'artifacts'}"
    return Fleet(workers, {**fleet.engines, **entered}, store)


def load_workers(path: Path) -> tuple[Worker, ...]:
    """Read a file of workers; raises SpecError with every fault."""
    return load_fleet(path).workers


def load_fleet(path: Path) -> Fleet:
    """Read a file of workers with their engines; raises SpecError with every fault."""
    return _parsed(read_text(path), str(path), _artifacts_given())


@lru_cache(maxsize=4)
def _parsed(text: str, file: str, artifacts: str) -> Fleet:
    typed, tree = parse(text, file, WorkersFile, "workers")
    faults = _conflicts(typed, tree, artifacts)
    if faults:
        raise SpecError([fault.in_file(file) for fault in without_echoes(faults)])
    engines = {one.name: one.engine for one in typed.workers if one.engine}
    store = typed.artifacts or artifacts
    return Fleet(tuple(_worker(one) for one in typed.workers), engines, store.rstrip("/"))


def _conflicts(file: WorkersFile, tree: Tree, artifacts: str) -> list[Fault]:
    faults: list[Fault] = []

    def fault(location: tuple[str | int, ...], what: str, value: object, way_out: str) -> None:
        origin = origin_at(tree, location)
        assert origin is not None
        faults.append(Fault(*origin.value, origin.text, what, shown(value), way_out))

    names: set[str] = set()
    owners: dict[tuple[str, int], str] = {}
    for number, worker in enumerate(file.workers):
        here = ("workers", number)
        if worker.name in names:
            fault((*here, "name"), "is the name of another worker, too", worker.name, "give each a name of its own")
        names.add(worker.name)
        for key in ("cpu", "memory"):
            if not getattr(worker, key):
                fault((*here, key), "is nothing", getattr(worker, key), _WAY_OUT)
        for at, what, value, way_out in (*_gpu_faults(worker, owners), *_engine_faults(worker)):
            fault((*here, *at), what, value, way_out)
        if worker.engine is not None and worker.pull is None and not (file.artifacts or artifacts):
            way_out = f"write artifacts: s3://bucket/prefix at the top, or set {ARTIFACTS}"
            fault((*here, _section(worker)), "needs an artifact store", worker.name, way_out)
    if wrong := _wrong_address(file.artifacts or ""):
        fault(("artifacts",), *wrong)
    return faults


def _artifacts_given() -> str:
    """The artifact store that MLOC_ARTIFACTS names; raises SpecError."""
    address = os.environ.get(ARTIFACTS) or ""
    if wrong := _wrong_address(address):
        what, value, way_out = wrong
        raise SpecError([Fault(0, 0, "", f"{ARTIFACTS} {what}", shown(value), way_out)])
    return address.rstrip("/")


def _wrong_address(address: str) -> tuple[str, str, str] | None:
    """What is wrong with the address of an artifact store, which is shown to whoever sees runs and machines."""
    try:
        password = urlsplit(address).password
    except ValueError:
        password, address = None, address.replace("://", ":")
    if password:
        way_out = "give credentials by environment variables, which env of a worker names"
        return "holds a password", "***", way_out
    if address and "://" not in address:
        return "is no address", address, "write s3://bucket/prefix or file:///folder"
    return None


def _gpu_faults(worker: Declared, owners: dict[tuple[str, int], str]) -> Iterator[_Found]:
    """What is wrong with a worker's GPUs; `owners` says which worker has which GPU of which machine."""
    for number, gpus in enumerate(worker.gpus):
        place = ("gpus", number)
        if worker.kubernetes is not None:
            if gpus.indexes is not None:
                yield (*place, "indexes"), "mean nothing in a cluster", str(gpus.indexes), "write count: 4"
            elif gpus.count is None:
                yield place, "has no count", gpus.type, "write count: 4, as many as stages may have of the cluster"
            if gpus.type != worker.gpus[0].type:
                yield (*place, "type"), "is a second kind", gpus.type, "declare a worker for each kind of node"
            continue
        if gpus.count is not None:
            yield (*place, "count"), "is for clusters", gpus.count, "write indexes: [0, 1]"
        if gpus.indexes is None and gpus.count is None:
            yield place, "has no indexes", gpus.type, "write indexes: [0, 1], as nvidia-smi lists them"
        for index in gpus.indexes or ():
            key = (worker.docker.host if worker.docker else worker.name if worker.pull else "", index)
            if key in owners:
                what = f"GPU {index} belongs to {owners[key]} already"
                yield (*place, "indexes"), what, index, "give it to one worker"
            owners[key] = worker.name


def _engine_faults(worker: Declared) -> Iterator[_Found]:
    places = [name for name in ("docker", "kubernetes", "pull") if getattr(worker, name) is not None]
    for second in places[1:]:
        yield (second,), "is a second place for its stages", worker.name, f"keep it or {places[0]}"
    if worker.docker is not None:
        for place, what, value, way_out in faults_of(worker.docker):
            yield ("docker", *place), what, value, way_out
    if worker.kubernetes is not None:
        for place, what, value, way_out in faults_of_cluster(worker.kubernetes, [one.type for one in worker.gpus]):
            yield ("kubernetes", *place), what, value, way_out


def _section(worker: Declared) -> str:
    return "docker" if worker.docker else "kubernetes"


def _worker(declared: Declared) -> Worker:
    devices: list[Device] = []
    for group in declared.gpus:
        memory = group.memory if group.memory is not None else (gpu_names.memory_gib(group.type) or 0) << 30
        numbers = group.indexes if group.indexes is not None else range(len(devices), len(devices) + (group.count or 0))
        devices.extend(Device(index, group.type, memory) for index in numbers)
    ordered = tuple(sorted(devices, key=lambda device: device.index))
    return Worker(declared.name, round(declared.cpu * WHOLE), declared.memory, ordered)
