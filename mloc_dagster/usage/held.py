"""What a run held, as its tags tell it: the grant of the queue, or what it took where there is none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from dagster import DagsterEvent, DagsterInstance, DagsterRun, JsonMetadataValue, MetadataValue
from dagster._core.events import EngineEventData

from mloc_dagster.placement import inventory
from mloc_dagster.placement.ledger.grant import Grant
from mloc_dagster.placement.queue.asked import NEEDS
from mloc_dagster.placement.workers.detect import this_machine
from mloc_dagster.placement.workers.need import WHOLE, Need
from mloc_dagster.placement.workers.room import Room, settled
from mloc_dagster.spec.base import Json

HELD = "mloc/held"
"""Run tag of a run that was started without the queue: what it took of this machine."""
SEAT = "mloc/seat"
"""Metadata of the event that tells what a stage of a run holds, where each has a worker of its own."""
_ON = "mloc/on"
_LONGEST_NAME, _MOST_DEVICES, _MOST_CPU = 200, 1024, 10_000 * WHOLE
"""Whoever launches a run sets its tags: beyond this is no worker, and the sums of many runs must stay below 2**63."""


@dataclass(frozen=True)
class Held:
    """Thousandths of devices by their canonical names, and of cores."""

    devices: tuple[tuple[str, int], ...] = ()
    cpu: int = WHOLE


NOTHING = Held((), 0)


def held_by(run: DagsterRun) -> Held:
    """Return what a run held; tags that cannot be read count as absent, and a run without any held one core."""
    grant = Grant.of_run(run)
    if grant is not None:
        shares = grant.shares or (WHOLE,) * len(grant.devices)
        pairs = zip((device.name for device in grant.devices), shares, strict=False)
        return _within(pairs, grant.cpu or _need(run).cpu)
    return _taken(run) or _within((), _need(run).cpu)


def seat_data(seat: Json) -> EngineEventData:
    """Return what an event tells of a stage that takes a worker of its own, or (None) gives it back."""
    return EngineEventData({SEAT: MetadataValue.json({"seat": seat})})


def seat_of(event: DagsterEvent) -> Held | None:
    """Return what a stage took, nothing where it gave that back, or None for an event that does not tell of it."""
    value = event.engine_event_data.metadata.get(SEAT)
    if not isinstance(value, JsonMetadataValue):
        return None
    try:
        seat = value.value["seat"]  # pyright: ignore[reportCallIssue, reportArgumentType, reportOptionalSubscript]
        return NOTHING if seat is None else _of_json(seat)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def note_held(instance: DagsterInstance, run: DagsterRun) -> None:
    """Tag a run that begins without a grant with the GPUs that it takes; without GPUs there is nothing to note."""
    if Grant.of_run(run) is not None or run.tags.get(_ON) == "cpu" or inventory.cpu_forced() or not inventory.gpus():
        return
    machine = this_machine()
    need = settled(_need(run), [machine])
    taken = Room.whole(machine).fit(need) if need else None
    if not taken or need is None:
        return
    names = {device.index: device.name for device in machine.devices}
    pairs = [[names[index], share] for index, share in taken.items()]
    told = {"run_id": run.run_id, "devices": pairs, "cpu": need.cpu}
    instance.add_run_tags(run.run_id, {HELD: json.dumps(told)})


def _taken(run: DagsterRun) -> Held | None:
    """What a tag of this very run says; Dagster's re-execution copies tags."""
    try:
        told = json.loads(run.tags[HELD])
        if told["run_id"] != run.run_id:
            return None
        return _of_json(told)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None


def _of_json(told: Mapping[str, Any]) -> Held:
    return _within(((str(name), int(share)) for name, share in told["devices"]), int(told["cpu"]))


def _within(pairs: Iterable[tuple[str, int]], cpu: int) -> Held:
    """Summed up by name, within what a worker can have."""
    total: dict[str, int] = {}
    for given, share in islice(pairs, _MOST_DEVICES):
        name = given.replace("\0", "")[:_LONGEST_NAME] or "unknown"
        total[name] = total.get(name, 0) + min(max(share, 0), WHOLE)
    return Held(tuple(sorted(total.items())), min(max(cpu, 0), _MOST_CPU))


def _need(run: DagsterRun) -> Need:
    try:
        return Need.from_dict(json.loads(run.tags[NEEDS]))
    except (KeyError, TypeError, ValueError, RecursionError):
        return Need()
