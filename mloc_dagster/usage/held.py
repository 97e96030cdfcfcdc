"""What a run held, as its tags tell it: the grant of the queue, or what it took where there is none."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from dagster import DagsterInstance, DagsterRun

from mloc_dagster.placement import inventory
from mloc_dagster.placement.ledger.grant import Grant
from mloc_dagster.placement.queue.asked import NEEDS
from mloc_dagster.placement.workers.detect import this_machine
from mloc_dagster.placement.workers.need import WHOLE, Need
from mloc_dagster.placement.workers.room import Room, settled

HELD = "mloc/held"
"""Run tag of a run that was started without the queue: what it took of this machine."""
_ON = "mloc/on"
_LONGEST_NAME, _MOST_DEVICES, _MOST_CPU = 200, 1024, 10_000 * WHOLE
"""Whoever launches a run sets its tags: beyond this is no worker, and the sums of many runs must stay below 2**63."""


@dataclass(frozen=True)
class Held:
    """Thousandths of devices by their canonical names, and of cores."""

    devices: tuple[tuple[str, int], ...] = ()
    cpu: int = WHOLE


def held_by(run: DagsterRun) -> Held:
    """Return what a run held; tags that cannot be read count as absent, and a run without any held one core."""
    grant = Grant.of_run(run)
    if grant is not None:
        shares = grant.shares or (WHOLE,) * len(grant.devices)
        pairs = zip((device.name for device in grant.devices), shares, strict=False)
        return _within(pairs, grant.cpu or _need(run).cpu)
    return _taken(run) or _within((), _need(run).cpu)


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
        return _within(((str(name), int(share)) for name, share in told["devices"]), int(told["cpu"]))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None


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
