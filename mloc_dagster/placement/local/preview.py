"""What a plan would do on this machine now: devices, memory, GPU-hours, and what is there already."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from mloc_dagster.placement import inventory
from mloc_dagster.placement.local.inputs import given_by, local_files, mirror_of, names_later
from mloc_dagster.placement.seats import place_on, prospect
from mloc_dagster.placement.workers.declared import Fleet, fleet_of
from mloc_dagster.placement.workers.room import Worker
from mloc_dagster.plan.compiler import pulls
from mloc_dagster.plan.digest import stage_digest
from mloc_dagster.plan.estimate import gpu_hours
from mloc_dagster.plan.memory import fit, shape_of
from mloc_dagster.plan.steps import Plan, Step
from mloc_dagster.sources import Cache, Pulled, peek_dataset, peek_model
from mloc_dagster.spec import gpu as gpu_names
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.quantity import format_bytes
from mloc_dagster.spec.slices import parse_slice
from mloc_dagster.spec.stage import StageSpec
from mloc_dagster.spec.task_types import known
from mloc_dagster.spec.taskfile import Stage
from mloc_dagster.store.digests import Digests
from mloc_dagster.store.home import Home
from mloc_dagster.store.reuse import ReuseIndex


@dataclass(frozen=True)
class PlannedStep:
    """One line of `mloc plan`. `memory` is in bytes on each device, `band` the share it may be off by."""

    key: str
    kind: str
    depends_on: tuple[str, ...]
    device: str = "-"
    memory: int | None = None
    band: float = 0.0
    fits: bool = True
    gpu_hours: float | None = None
    state: str = "to run"
    reused_from: str | None = None
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Json]:
        """Return the values for JSON."""
        return asdict(self)


def preview(plan: Plan, home: Home, *, fresh: bool) -> list[PlannedStep]:
    """Return the plan's steps with all that is known before anything runs; pulls and starts nothing."""
    digests: dict[str, str | None] = {}
    return [_step(plan, step, home, digests, fresh) for step in plan.steps]


def _step(plan: Plan, step: Step, home: Home, digests: dict[str, str | None], fresh: bool) -> PlannedStep:
    assert step.stage is not None
    if step.kind == "final_output":
        return PlannedStep(step.key, step.kind, step.depends_on, notes=(f"of {step.source}",))
    if step.kind == "publish":
        return PlannedStep(step.key, step.kind, step.depends_on, notes=(f"to {step.source}",))
    if step.kind in ("model", "dataset"):
        pulled = _peek(step, home)
        digests[step.key] = pulled.digest if pulled else None
        state = f"cached ({format_bytes(pulled.size)})" if pulled else "to pull"
        return PlannedStep(step.key, step.kind, step.depends_on, state=state, notes=(f"from {step.source}",))
    return _stage(plan, step, step.stage, home, digests, fresh)


def _peek(step: Step, home: Home) -> Pulled | None:
    assert step.stage is not None
    spec, cache = step.stage.spec, Cache(home.cache)
    if step.model is not None:
        return peek_model(step.model, cache=cache, mirror=mirror_of(spec))
    return peek_dataset(spec.data, cache=cache, mirror=mirror_of(spec))


def _stage(
    plan: Plan, step: Step, stage: Stage, home: Home, digests: dict[str, str | None], fresh: bool
) -> PlannedStep:
    spec, kind = stage.spec, known()[stage.spec.task_type]
    placed, worker = _placement(fleet_of(home), spec)
    digest = _digest(plan, step, stage, home, digests, placed.on_cpu)
    digests[step.key] = digest
    entry = ReuseIndex(home).lookup(digest) if digest and not fresh and kind.reusable else None
    shape = shape_of(_model_folder(stage, home), spec.model.source.identifier) if spec.model.source else None
    devices = len(placed.devices) or _refused_devices(stage, placed)
    estimate = fit(spec, shape, devices, kind.trains) if shape else None
    room = _room(stage, placed, worker)
    fits = estimate is None or room is None or estimate.total * (1 - estimate.band) <= room
    hours = gpu_hours(spec, shape, _rows(stage), kind.trains) if shape and devices else None
    notes = [note for note in (placed.note, placed.refusal) if note]
    if estimate and not fits and room is not None:
        notes.append(f"needs about {format_bytes(estimate.total)}, the device has {format_bytes(room)}")
    if estimate and shape and not shape.known:
        notes.append("memory is guessed from the model's name; it is exact once the model is pulled")
    limit = spec.slo_limit()
    if limit:
        notes.append(f"SLO {limit:g} s")
    device = ", ".join(f"gpu {index}" for index in placed.devices) or "cpu"
    if worker is not None:
        device = f"{device} on {worker.name}"
    state = f"reused from {entry.task_id}" if entry else ("refused" if placed.refusal else "to run")
    return PlannedStep(
        step.key, step.kind, step.depends_on, "nowhere" if placed.refusal else device,
        estimate.total if estimate else None, estimate.band if estimate else 0.0, fits, hours, state,
        entry.task_id if entry else None, tuple(notes),
    )  # fmt: skip


def _placement(fleet: Fleet, spec: StageSpec) -> tuple[inventory.Placement, Worker | None]:
    """What a stage would get if all were free; where there are engines, of which worker."""
    on_cpu = inventory.cpu_forced()
    if not fleet.engines:
        return inventory.place(spec.resources, spec.enforce_cpu, on_cpu, inventory.gpus()), None
    placed, worker = place_on(fleet, spec, on_cpu), prospect(fleet, spec, on_cpu)
    if worker is None or placed.on_cpu:
        return placed, worker
    devices = inventory.place(spec.resources, spec.enforce_cpu, on_cpu, worker.devices).devices
    return replace(placed, devices=devices), worker


def _digest(
    plan: Plan, step: Step, stage: Stage, home: Home, digests: dict[str, str | None], on_cpu: bool
) -> str | None:
    """The digest that the stage will have, or None while something that it reads isn't known yet."""
    given: dict[str, str] = {}
    for name in given_by(plan, stage):
        known_digest = digests.get(f"{plan.task.name}/{name}")
        if known_digest is None:
            return None
        given[f"stage:{name}"] = known_digest
    later = ("model.source", "reward_model", "data", "rag.embedding", "rag.documents", "rag.search.rerank_model")
    sources = stage.spec.rag.documents.sources() if stage.spec.rag.documents else []
    if plan.task.requires or any(dotted.startswith(later) for dotted in stage.deferred):
        return None
    if any(source.data() is not None for source in sources) or names_later(stage):
        return None
    for name, pull in pulls(stage).items():
        pulled = digests.get(pull.key)
        if pulled is None:
            return None
        given[name] = pulled
    for name, path in local_files(known()[stage.spec.task_type].part(stage.raw)):
        given[name] = Digests(home).of(path) if path.exists() else "absent"
    return stage_digest(stage, given, on_cpu)


def _model_folder(stage: Stage, home: Home) -> Path | None:
    pull = pulls(stage).get("model")
    pulled = _peek(pull, home) if pull else None
    return pulled.path if pulled else None


def _refused_devices(stage: Stage, placed: inventory.Placement) -> int:
    """How many GPUs a stage asks for that this machine does not have: it is sized for those."""
    gpu = stage.spec.resources.hardware.gpu
    return gpu.count if placed.refusal and gpu else 0


def _room(stage: Stage, placed: inventory.Placement, worker: Worker | None) -> int | None:
    """Bytes on the device that the stage gets, or that it asks for when there is none here."""
    if placed.devices:
        devices = worker.devices if worker else inventory.gpus()
        first = next((device for device in devices if str(device.index) == placed.devices[0]), None)
        return first.memory if first else None
    if placed.refusal and stage.spec.resources.hardware.gpu:
        size = gpu_names.memory_gib(stage.spec.resources.hardware.gpu.type)
        return size << 30 if size else None
    return worker.memory if worker else inventory.memory_bytes()


def _rows(stage: Stage) -> int | None:
    """Rows that a stage reads, at most, as far as the task file tells."""
    data = stage.spec.data
    listed = data.items or data.prompts or data.preferences or stage.spec.inference.prompts
    if listed is not None:
        return len(listed)
    return min((rows for rows in (data.max_samples, _slice_rows(data.split)) if rows), default=None)


def _slice_rows(split: str) -> int | None:
    """Rows between the bounds of a slice: `train[60:100]` has 40; None where that depends on the data set."""
    rows = parse_slice(split) if "$" not in split else parse_slice("train")
    if any(bound.endswith("%") for bound in (rows.start, rows.stop) if bound):
        return None
    start, stop = int(rows.start or 0), int(rows.stop or 0)
    told = stop <= 0 if start < 0 else stop > 0
    return max(0, stop - start) if told else None
