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

LEASE = "mloc/lease"
_log = logging.getLogger("mloc")
_talking = threading.Lock()
"""Held while the watch talks to the database: a process must not be forked just then."""
os.register_at_fork(before=_talking.acquire, after_in_parent=_talking.release, after_in_child=_talking.release)


class LeaseLost(Exception):
    """A run does not hold its lease any more; the message says what follows."""


@dataclass(frozen=True)
class Grant:
    """A lease as the run's worker process sees it; `seconds`: it must be renewed that often."""

    token: int
    run_id: str
    worker: str
    devices: tuple[Device, ...]
    seconds: float

    @classmethod
    def of_lease(cls, lease: Lease, worker: Worker, seconds: float) -> Grant:
        """Return what to tell the run of a lease."""
        devices = tuple(device for device in worker.devices if device.index in lease.devices)
        return cls(lease.token, lease.run_id, lease.worker, devices, seconds)

    @classmethod
    def of_run(cls, run: DagsterRun) -> Grant | None:
        """Return the run's grant, or None: it was started without the queue. A tag copied from another run is none."""
        text = run.tags.get(LEASE)
        if not text:
            return None
        parts = json.loads(text)
        grant = cls(**{**parts, "devices": tuple(Device(**device) for device in parts["devices"])})
        return grant if grant.run_id == run.run_id else None

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
