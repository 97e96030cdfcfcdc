"""What this machine has."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from functools import cache

from mloc_dagster.placement import inventory
from mloc_dagster.placement.inventory import Device
from mloc_dagster.placement.workers.need import WHOLE
from mloc_dagster.placement.workers.room import Worker
from mloc_dagster.spec import gpu as gpu_names

_ROCM = ["rocm-smi", "--showproductname", "--showmeminfo", "vram", "--json"]


def this_machine() -> Worker:
    """Return this machine as one worker, named after its host, with all cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Worker(socket.gethostname(), cores * WHOLE, inventory.memory_bytes(), inventory.gpus() or amd_gpus())


@cache
def amd_gpus() -> tuple[Device, ...]:
    """Return the GPUs that rocm-smi lists; none when there is no driver."""
    if shutil.which(_ROCM[0]) is None:
        return ()
    try:
        cards = json.loads(subprocess.run(_ROCM, capture_output=True, text=True, timeout=20, check=True).stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()
    found = []
    for key, card in cards.items():
        number = re.fullmatch(r"card(\d+)", key)
        if number:
            name = card.get("Card Series") or card.get("Card series") or card.get("Card model") or "amd"
            found.append(Device(int(number[1]), gpu_names.normalise(name), int(card.get("VRAM Total Memory (B)", 0))))
    return tuple(sorted(found, key=lambda device: device.index))
