"""Workers as the command and the service tell of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from mloc_dagster.client.shapes import LeaseRow, Worker
from mloc_dagster.placement.ledger.ledger import Lease, Seen
from mloc_dagster.placement.workers.need import WHOLE

_SILENT_SECONDS = 60.0


def worker_rows(seen: Iterable[Seen], leases: Sequence[Lease]) -> list[Worker]:
    """Return each worker with what is held of it, and by whom."""
    return [_row(one, [lease for lease in leases if lease.worker == one.worker.name]) for one in seen]


def _row(seen: Seen, leases: Sequence[Lease]) -> Worker:
    worker = seen.worker
    cpu, memory = sum(lease.need.cpu for lease in leases), sum(lease.need.memory for lease in leases)
    shares = {device.index: sum(lease.devices.get(device.index, 0) for lease in leases) for device in worker.devices}
    return {
        "name": worker.name,
        "host": seen.host,
        "state": worker.state,
        "silent": time.time() - seen.seen_at > _SILENT_SECONDS,
        "load": seen.load,
        "cpu": {"total": worker.cpu / WHOLE, "held": cpu / WHOLE},
        "memory": {"total": worker.memory, "held": memory},
        "devices": [
            {"index": device.index, "name": device.name, "memory": device.memory, "held": shares[device.index] / WHOLE}
            for device in worker.devices
        ],
        "leases": [_lease(lease) for lease in leases],
    }


def _lease(lease: Lease) -> LeaseRow:
    return {
        "run_id": lease.run_id,
        "owner": lease.owner,
        "cpu": lease.need.cpu / WHOLE,
        "memory": lease.need.memory,
        "devices": {str(index): share / WHOLE for index, share in lease.devices.items()},
        "since": lease.taken_at,
    }
