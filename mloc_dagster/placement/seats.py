"""Where the stages of a run go: onto what the run holds, or each onto a worker of its own, local or an engine."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mloc_dagster.files.atomic import write_text
from mloc_dagster.placement import inventory
from mloc_dagster.placement.failures.cause import Cause
from mloc_dagster.placement.inventory import Device, Placement
from mloc_dagster.placement.ledger import Lease, Ledger
from mloc_dagster.placement.ledger.grant import Grant, LeaseLost, held
from mloc_dagster.placement.local.outcome import StepCancelled, StepFailed
from mloc_dagster.placement.queue.asked import may_use_gpu
from mloc_dagster.placement.remote.carrier import Carrier
from mloc_dagster.placement.workers.cluster import Kubernetes
from mloc_dagster.placement.workers.declared import Engine, Fleet
from mloc_dagster.placement.workers.need import WHOLE, Need, need_of, replicas_of
from mloc_dagster.placement.workers.outbound import Pull
from mloc_dagster.placement.workers.room import Room, Worker, preference, settled, shortage
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.quantity import format_bytes
from mloc_dagster.spec.stage import StageSpec
from mloc_dagster.spec.taskfile import Stage
from mloc_dagster.store.home import Home

_LEASE_SECONDS = 60.0
_AGAIN_SECONDS = 0.3
_FAILED_ON = Path(".cache") / "failed_on"
Report = Callable[[dict[str, Json]], None]


@dataclass(frozen=True)
class Seat:
    """What a stage has of a worker while it runs. `lost` gives the reason when it has it no more."""

    worker: str
    devices: tuple[Device, ...]
    need: Need
    engine: Engine | None
    memory: int
    """Bytes that the whole worker has for stages."""
    lost: Callable[[], str]


class Seats:
    """The seats of one run's stages. `grant` is what the queue gave the run; None: it was started without the queue."""

    def __init__(self, fleet: Fleet, ledger: Ledger, run_id: str, owner: str, grant: Grant | None) -> None:
        self.fleet, self._ledger = fleet, ledger
        self._run_id, self._owner, self._grant = run_id, owner, grant

    @property
    def each_its_own(self) -> bool:
        """Whether every stage takes a worker of its own."""
        return bool(self.fleet.engines) if self._grant is None else self._grant.split

    def carriers(self) -> dict[str, Carrier]:
        """One for each worker that is an engine."""
        return {
            worker.name: self._carrier(worker) for worker in self.fleet.workers if worker.name in self.fleet.engines
        }

    def _carrier(self, worker: Worker) -> Carrier:
        from mloc_dagster.placement.docker.carrier import DockerCarrier
        from mloc_dagster.placement.k8s.carrier import KubernetesCarrier
        from mloc_dagster.placement.pull.carrier import PullCarrier

        engine = self.fleet.engines[worker.name]
        if isinstance(engine, Pull):
            return PullCarrier(worker.name, engine, Home.current())
        if isinstance(engine, Kubernetes):
            return KubernetesCarrier(worker, engine, self.fleet.artifacts)
        return DockerCarrier(worker.name, engine, self.fleet.artifacts)

    def placement(self, spec: StageSpec, on_cpu: bool) -> Placement:
        """Say whether a stage runs on a CPU, or why no worker can have it; which one it gets is seen when it starts."""
        return place_on(self.fleet, spec, on_cpu)

    @contextmanager
    def take(
        self,
        stage: Stage,
        on_cpu: bool,
        work: Path,
        cancelled: Callable[[], bool],
        report: Report,
    ) -> Iterator[Seat]:
        """Hold a worker for a stage, waiting for it; raises StepCancelled, or StepFailed when it is lost at once.

        The folder `work` remembers where the stage failed: its next attempt takes another worker if one has room.
        """
        need = _need(stage.spec, on_cpu)
        if not self.each_its_own:
            assert self._grant is not None
            seat = self._own_seat(self._grant, stage, need, on_cpu)
            _require_carried(stage, seat.worker, seat.engine)
            yield seat
            return
        whole = settled(need, self.fleet.workers)
        assert whole is not None  # else it was refused
        if self._grant is None:
            self._register()
        failed_on = work / _FAILED_ON
        lease = self._wait(stage, whole, failed_on, cancelled, report)
        worker = next(one for one in self.fleet.workers if one.name == lease.worker)
        grant = Grant.of_lease(lease, worker, _LEASE_SECONDS)
        lost: list[str] = []
        try:
            with held(self._ledger, grant, lost.append), _told_of(stage, grant, report):
                _require_carried(stage, worker.name, self.fleet.engines.get(worker.name))
                yield Seat(
                    worker.name, grant.devices, whole, self.fleet.engines.get(worker.name), worker.memory,
                    lambda: lost[0] if lost else "",
                )  # fmt: skip
        except LeaseLost as error:
            raise StepFailed(f"{stage.name}: {error}", Cause.WORKER_LOST) from None
        except StepFailed:
            write_text(failed_on, worker.name)
            raise

    @contextmanager
    def adopted(
        self, stage: Stage, on_cpu: bool, worker: str, devices: tuple[str, ...], report: Report
    ) -> Iterator[None]:
        """Hold what work that an earlier run has begun has of a worker, so that nothing is placed beside it.

        It has that already: what the worker has besides may be less than nothing meanwhile.
        """
        known = next((one for one in self.fleet.workers if one.name == worker), None)
        own = self._grant is not None and not self._grant.split and self._grant.worker == worker
        whole = settled(_need(stage.spec, on_cpu), self.fleet.workers)
        if known is None or own or whole is None:
            yield
            return
        if self._grant is None:
            self._register()
        share = whole.gpus[0].share if whole.gpus else WHOLE
        taken = {int(index): share for index in devices}
        lease = self._ledger.note_stage(
            self._run_id, stage.name, self._owner, whole, _LEASE_SECONDS, worker=worker, devices=taken,
            split=self._grant is not None and self._grant.split,
        )  # fmt: skip
        grant = Grant.of_lease(lease, known, _LEASE_SECONDS)
        with held(self._ledger, grant, lambda reason: None), _told_of(stage, grant, report):
            yield

    def _register(self) -> None:
        self._ledger.register(socket.gethostname(), self.fleet.workers, os.getloadavg()[0] / (os.cpu_count() or 1))

    def _own_seat(self, grant: Grant, stage: Stage, need: Need, on_cpu: bool) -> Seat:
        """A seat on what the run holds."""
        spec = stage.spec
        indexes = inventory.place(spec.resources, spec.enforce_cpu, on_cpu, grant.devices).devices
        devices = tuple(device for device in grant.devices if str(device.index) in indexes)
        memory = next((one.memory for one in self.fleet.workers if one.name == grant.worker), 0)
        if memory:
            need = replace(need, memory=min(need.memory, memory))
        return Seat(grant.worker, devices, need, self.fleet.engines.get(grant.worker), memory, lambda: "")

    def _wait(
        self,
        stage: Stage,
        need: Need,
        failed_on: Path,
        cancelled: Callable[[], bool],
        report: Report,
    ) -> Lease:
        avoid = failed_on.read_text("utf-8") if failed_on.is_file() else ""
        told, names = 0.0, {worker.name for worker in self.fleet.workers}
        while True:
            lease = self._ledger.claim_stage(
                self._run_id, stage.name, self._owner, need, _LEASE_SECONDS, among=names, avoid=avoid
            )
            if lease is not None:
                return lease
            if cancelled():
                self._ledger.give_up(self._run_id, stage.name)
                raise StepCancelled(f"{stage.name} was cancelled while it waited for a worker")
            if time.monotonic() - told > _LEASE_SECONDS or not told:
                told = time.monotonic()
                report({"note": f"waits: needs {need}: {self._shortage(need)}"})
            threading.Event().wait(_AGAIN_SECONDS)

    def _shortage(self, need: Need) -> str:
        seen, leases = self._ledger.snapshot()
        rooms = {one.worker.name: Room.whole(one.worker) for one in seen if one.worker.state == "ready"}
        for lease in leases:
            if lease.worker in rooms:
                rooms[lease.worker].take(lease.need, lease.devices)
        return shortage(need, list(rooms.values()))


@contextmanager
def _told_of(stage: Stage, grant: Grant, report: Report) -> Iterator[None]:
    """Tell what a stage holds of a worker, and when it gives it back: the run itself holds nothing meanwhile."""
    shares = grant.shares or (WHOLE,) * len(grant.devices)
    devices: list[Json] = [[device.name, share] for device, share in zip(grant.devices, shares, strict=True)]
    names = [device.name for device in grant.devices]
    gpus = "".join(f", {names.count(name)} × {name}" for name in dict.fromkeys(names))
    note = f"{stage.name} takes {grant.cpu / WHOLE:g} cores{gpus} of {grant.worker}"
    report({"note": note, "seat": {"devices": devices, "cpu": grant.cpu}})
    try:
        yield
    finally:
        report({"note": f"{stage.name} gives back what it had of {grant.worker}", "seat": None})


def place_on(fleet: Fleet, spec: StageSpec, on_cpu: bool) -> Placement:
    """Say what a stage gets of a fleet: a GPU or none, a note where it gets less than it asks for, or the refusal."""
    need = _need(spec, on_cpu)
    whole = settled(need, fleet.workers)
    if whole is None:
        asked = ", ".join(map(str, need.gpus))
        return Placement(
            refusal=f"needs {asked}, which no worker has: {_told(fleet)}; "
            "run it with --on cpu (MLOC_ON=cpu) to take the request as a hint"
        )
    worker = prospect(fleet, spec, on_cpu)
    refusal = _not_carried(spec, worker.name, fleet.engines.get(worker.name)) if worker is not None else ""
    if refusal:
        return Placement(refusal=refusal)
    notes = []
    gpu = spec.resources.hardware.gpu
    if on_cpu and gpu is not None and gpu.count and not spec.enforce_cpu:
        notes.append(f"{gpu.count} × {gpu.type} asked for, run on the CPU")
    if whole.cpu < need.cpu:
        notes.append(f"{need.cpu / WHOLE:g} cores asked for, no worker that fits has more than {whole.cpu / WHOLE:g}")
    if whole.memory < need.memory:
        most = format_bytes(whole.memory)
        notes.append(f"{format_bytes(need.memory)} of memory asked for, no worker that fits has more than {most}")
    return Placement(on_cpu=not whole.gpus, note="; ".join(notes))


def prospect(fleet: Fleet, spec: StageSpec, on_cpu: bool) -> Worker | None:
    """Return the worker that a stage would get if all were free."""
    need = settled(_need(spec, on_cpu), fleet.workers)
    rooms = [Room.whole(worker) for worker in fleet.workers]
    fitting = [room for room in rooms if need is not None and room.fit(need) is not None]
    best = min(fitting, key=lambda room: preference(room, need or Need()), default=None)
    return best.worker if best else None


def _not_carried(spec: StageSpec, worker: str, engine: Engine | None) -> str:
    """Why an engine cannot do what a stage asks for; empty when it can."""
    gpu = spec.resources.hardware.gpu
    if isinstance(engine, Pull) and replicas_of(spec) > 1:
        return (
            f"asks for resources.replicas {replicas_of(spec)}, and {worker} runs a stage in one place; "
            "write replicas: 1 and ask for all GPUs of one machine (hardware.gpu.count), or run it on this machine"
        )
    if engine is not None and (refusal := _not_replicated(spec, worker)):
        return refusal
    if isinstance(engine, Kubernetes) and gpu is not None and gpu.count and gpu.share < 1 and not spec.enforce_cpu:
        return (
            f"asks for {gpu.share:g} of a GPU, and {worker} is a cluster, which gives out whole devices; "
            "leave out gpu.share, or declare time-sliced devices as GPUs of their own (gpu_resource)"
        )
    return ""


def _not_replicated(spec: StageSpec, worker: str) -> str:
    """Why a training cannot be spread over several containers; empty when it can, or has one."""
    replicas, training, gpu = replicas_of(spec), spec.training, spec.resources.hardware.gpu
    if replicas == 1:
        return ""
    asks = f"asks for resources.replicas {replicas}, which are containers of their own on {worker}"
    if training.deepspeed or training.auto_deepspeed or training.fsdp:
        return (
            f"{asks}, and for DeepSpeed or FSDP, whose checkpoints would lie there in pieces; "
            "write replicas: 1 and ask for all GPUs of one machine (hardware.gpu.count), or leave out the sharding"
        )
    if gpu is None or gpu.count == 0 or spec.enforce_cpu:
        return ""
    if gpu.share < 1:
        return f"{asks}, and for {gpu.share:g} of a GPU; leave out gpu.share, or write replicas: 1"
    if gpu.count % replicas:
        even = gpu.count - gpu.count % replicas or replicas
        return f"{asks} and share hardware.gpu.count {gpu.count} evenly; ask for a multiple, such as {even}"
    return ""


def _require_carried(stage: Stage, worker: str, engine: Engine | None) -> None:
    refusal = _not_carried(stage.spec, worker, engine)
    if refusal:
        raise StepFailed(f"{stage.name} {refusal}", Cause.USER)


def _need(spec: StageSpec, on_cpu: bool) -> Need:
    need = need_of([(spec, may_use_gpu(spec.task_type))])
    return need.on_cpu if on_cpu else need


def _told(fleet: Fleet) -> str:
    """The GPUs of all workers, for a message."""
    parts = []
    for worker in fleet.workers:
        names = [device.name for device in worker.devices]
        counted = ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))
        parts.append(f"{worker.name} has {counted or 'no GPU'}")
    return ", ".join(parts)
