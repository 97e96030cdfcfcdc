"""What weights were made of and with: the rows, the packages, the devices; for whoever asks about them later."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable
from pathlib import Path

import torch

from executors.software import TRAINING, software
from executors.tables import Row
from mloc_dagster.spec.base import Json


def made_with(rows: Iterable[Row], *, gpu: bool) -> dict[str, Json]:
    """Return the digest of the rows in their order, the software and the devices of this process, as metadata."""
    return {"data_digest": rows_digest(rows), "software": software(TRAINING), "device_names": device_names(gpu)}


def rows_digest(rows: Iterable[Row]) -> str:
    """Return `sha256:<hex>` of rows as lines of JSON."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(dict(row), sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "replace"))
        digest.update(b"\n")
    return f"sha256:{digest.hexdigest()}"


def device_names(gpu: bool) -> list[str]:
    """Return the names of the GPUs that this process sees, else that of the processor."""
    if gpu:
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [_processor()]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.machine()
