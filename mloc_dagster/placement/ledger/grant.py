"""What a run is told of its lease: the run tag `mloc/lease`, and a watch over it while the run goes on."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from dagster import DagsterRun
from sqlalchemy.exc import SQLAlchemyError

from mloc_dagster.placement.inventory import Device
from mloc_dagster.placement.ledger.ledger import Lease, Ledger
from mloc_dagster.placement.workers.room import Worker
from mloc_dagster.spec.base import Json

LEASE = "mloc/lease"
_log = logging.getLogger("mloc")
_talking = threading.Lock()
"""Held while the watch talks to the database: a process must not be forked just then."""
os.register_at_fork(before=_talking.acquire, after_in_parent=_talking.release, after_in_child=_talking.release)


class LeaseLost(Exception):
    """A run does not hold its lease any more; the message says what follows."""


@dataclass(frozen=True)
class Grant:
    """A lease as the run's worker process sees it; `seconds`: it must be renewed that often.

    `shares` are thousandths of each of the devices (none told: all of them), `cpu` thousandths of a core.
    """

    token: int
    run_id: str
    worker: str
    devices: tuple[Device, ...]
    seconds: float
    shares: tuple[int, ...] = ()
    cpu: int = 0
    split: bool = False
    """Whether no one worker has what all stages need: each then takes its own."""

    @classmethod
    def of_lease(cls, lease: Lease, worker: Worker, seconds: float, *, split: bool = False) -> Grant:
        """Return what to tell the run of a lease."""
        devices = tuple(device for device in worker.devices if device.index in lease.devices)
        shares = tuple(lease.devices[device.index] for device in devices)
        return cls(lease.token, lease.run_id, lease.worker, devices, seconds, shares, lease.need.cpu, split)

    @classmethod
    def of_run(cls, run: DagsterRun) -> Grant | None:
        """Return the run's grant, or None: it was started without the queue.

        A tag copied from another run is none, nor is one that cannot be read: whoever launches a run sets its tags.
        """
        text = run.tags.get(LEASE)
        if not text:
            return None
        try:
            grant = cls._of_tag(json.loads(text))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            _log.warning("the tag %s of run %s cannot be read and counts for nothing: %s", LEASE, run.run_id, error)
            return None
        return grant if grant.run_id == run.run_id else None

    @classmethod
    def _of_tag(cls, parts: dict[str, Json]) -> Grant:
        devices = tuple(Device(**device) for device in parts["devices"])
        grant = cls(**{**parts, "devices": devices, "shares": tuple(parts.get("shares", ()))})
        numbers = [grant.token, grant.cpu, *grant.shares, *(n for one in devices for n in (one.index, one.memory))]
        texts = [grant.run_id, grant.worker, *(device.name for device in devices)]
        if not (all(type(one) is int and one >= 0 for one in numbers) and all(type(one) is str for one in texts)):
            raise ValueError("it holds what is no whole number, or no text")
        if (
            type(grant.split) is not bool
            or type(grant.seconds) not in (int, float)
            or not 0 < grant.seconds < threading.TIMEOUT_MAX
        ):
            raise ValueError(f"seconds is {grant.seconds!r}, split {grant.split!r}")
        if len(grant.shares) not in (0, len(devices)):
            raise ValueError(f"{len(grant.shares)} shares of {len(devices)} devices")
        return grant

    def as_tag(self) -> dict[str, str]:
        """Return the run tag."""
        return {LEASE: json.dumps(asdict(self))}


@contextmanager
def held(ledger: Ledger, grant: Grant, lost: Callable[[str], None]) -> Iterator[None]:
    """Renew a lease as long as the block runs, and give it back at its end.

    Calls `lost` from another thread, once, when the lease is gone, or when for two thirds of its time nobody could be
    told that it is used. Raises LeaseLost when it is gone at the beginning.
    """
    if not ledger.renew(grant.token, grant.seconds):
        raise LeaseLost(
            f"the lease {grant.token} on {grant.worker} was given up before the run began: it took too long to start"
        )
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(ledger, grant, lost, over), daemon=True, name="lease")
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()
        ledger.release(grant.token)


def _watch(ledger: Ledger, grant: Grant, lost: Callable[[str], None], over: threading.Event) -> None:
    renewed = time.monotonic()
    while not over.wait(grant.seconds / 6):
        try:
            with _talking:
                there = ledger.renew(grant.token, grant.seconds)
        except SQLAlchemyError as error:
            _log.warning("the lease %d could not be renewed: %s", grant.token, error)
            if time.monotonic() - renewed > grant.seconds * 2 / 3:
                return lost(f"its lease on {grant.worker} could not be renewed: the database does not answer")
            continue
        if not there:
            return lost(f"its lease on {grant.worker} is gone: it was silent for too long, and others may have it")
        renewed = time.monotonic()
    return None
