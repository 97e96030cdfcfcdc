"""A stage of a run on the worker that it was given: what an earlier run left there is gone on with, else it is sent."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from executors.job import Job
from executors.remote.store import Store, StoreError
from mloc_dagster.placement.failures.cause import Cause
from mloc_dagster.placement.local.outcome import RunInfo, StepFailed
from mloc_dagster.placement.local.process import Ended
from mloc_dagster.placement.remote import run as remote
from mloc_dagster.placement.remote.run import Errand, Place
from mloc_dagster.placement.seats import Seat, Seats
from mloc_dagster.placement.workers.cluster import Kubernetes
from mloc_dagster.placement.workers.declared import Engine
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.taskfile import Stage

Report = Callable[[dict[str, Json]], None]


@dataclass(frozen=True)
class Earlier:
    """How work of an earlier run ended, and where it was."""

    ended: Ended
    worker: str = ""
    devices: tuple[str, ...] = ()


def errand_of(stage: Stage, run: RunInfo, work: Path, seats: Seats) -> Errand:
    """Return what is to be done; the job file lies in the work folder. Raises StepFailed without a store."""
    try:
        store = Store(seats.fleet.artifacts)
    except StoreError as error:
        raise StepFailed(f"{stage.name}: {error}", Cause.USER) from None
    return Errand(store, stage, Job.read(work / "job.json"), work.name, run.task_id, run.run_id, run.home)


def go_on(
    errand: Errand, run: RunInfo, seats: Seats, on_cpu: bool, report: Report, patience: float | None
) -> Earlier | None:
    """Take over what an earlier run has begun: its result, or work that goes on; None: there is nothing."""
    name = errand.stage.name
    carried = None
    done = remote.finished(errand, report)
    if not done:
        carried = remote.adopt(errand, seats.carriers(), report=report, cancelled=run.cancelled, lost_after=patience)
        done = carried is None and remote.finished(errand, report)  # it may have ended between the two looks
    if done:
        report({"note": f"{name} was finished while nobody watched; its result is taken over"})
        return Earlier(Ended(0))
    if carried is None:
        return None
    with seats.adopted(errand.stage, on_cpu, carried.worker, carried.devices, report):
        ended = remote.follow(
            errand, carried, f"{name} goes on in {carried.place}", report=report, cancelled=run.cancelled,
            lost=lambda: "", lost_after=patience,
        )  # fmt: skip
    remote.end_others(errand, seats.carriers(), carried.attempt)
    return Earlier(ended, carried.worker, carried.devices)


def carry_out(errand: Errand, seats: Seats, seat: Seat, run: RunInfo, report: Report, patience: float | None) -> Ended:
    """Do the work on a seat; raises StepFailed."""
    assert seat.engine is not None
    hardware = errand.stage.spec.resources.hardware
    replicas = errand.replicas
    place = Place(
        worker=seat.worker,
        carrier=seats.carriers()[seat.worker],
        cpu=seat.need.cpu // replicas if hardware.cpu else None,
        share=seat.need.cpu // replicas,
        memory=seat.need.memory // replicas or _memory_by_default(seat) // replicas,
        devices=tuple(device.index for device in seat.devices),
        environment=_declared_environment(errand.stage, seat.worker, seat.engine),
        replicas=replicas,
    )
    carried = remote.start(errand, place)
    ended = remote.follow(
        errand, carried, f"{errand.stage.name} runs in {carried.place}", report=report, cancelled=run.cancelled,
        lost=seat.lost, lost_after=patience,
    )  # fmt: skip
    remote.end_others(errand, seats.carriers(), carried.attempt)
    return ended


def _memory_by_default(seat: Seat) -> int:
    """Bytes for a stage that asks for none: all of a machine, but a part of a cluster."""
    return min(seat.engine.default_memory, seat.memory) if isinstance(seat.engine, Kubernetes) else seat.memory


def _declared_environment(stage: Stage, worker: str, engine: Engine) -> dict[str, str]:
    missing = [name for name in engine.env if name not in os.environ]
    if missing:
        names = ", ".join(missing)
        raise StepFailed(
            f"{stage.name}: workers.yaml gives {worker} the environment variables {names}, which are not set here\n"
            "Set them where the service and its daemon run, or take them out of its env",
            Cause.USER,
        )
    return {name: os.environ[name] for name in engine.env}
