"""Names and labels: what all attempts at a piece of work have in common, and what tells one from the others.

Annotations hold the values as they are, labels what can be a label: 63 characters, letters, digits, `-_.`.
"""

from __future__ import annotations

import hashlib
import re

from mloc_dagster.placement.remote.carrier import Order

JOB, ATTEMPT, DEVICES, WORKER = "mloc.job", "mloc.attempt", "mloc.devices", "mloc.worker"
CONTAINER = "stage"
"""The container of a pod in which the stage runs."""


def identity(store: str, job: str) -> str:
    """Return what the work is, the same for all attempts at it on all clusters."""
    return f"{store}/{job}"


def digest(store: str, job: str) -> str:
    """Return the identity as a label."""
    return hashlib.sha256(identity(store, job).encode()).hexdigest()[:32]


def job_name(store: str, job: str) -> str:
    """Return the name of the Job: a namespace never holds two for the same work."""
    return f"mloc-{digest(store, job)}"


def secret_name(attempt: str) -> str:
    """Return the name of the Secret with the environment of an attempt."""
    return f"mloc-{attempt}"


def service_name(attempt: str) -> str:
    """Return the name of the Service by which the replicas of an attempt meet."""
    return f"mloc-{attempt}"


def labels_of(order: Order) -> dict[str, str]:
    """Return the labels of Job, pod and Secret."""
    told = {name: as_label(value) for name, value in order.labels.items()}
    return {**told, JOB: digest(order.store, order.job), ATTEMPT: order.attempt}


def annotations_of(order: Order) -> dict[str, str]:
    """Return the same unabridged, and the devices that the attempt counts for."""
    devices = ",".join(map(str, order.devices))
    return {**order.labels, JOB: identity(order.store, order.job), DEVICES: devices}


def as_label(value: str) -> str:
    """Return what of a value can be a label."""
    return re.sub(r"[^A-Za-z0-9_.-]", ".", value)[:63].strip("-_.")
