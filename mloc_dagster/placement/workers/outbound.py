"""Workers that reach out: the `pull` section of `workers.yaml`, and the machines that have entered themselves.

A machine that connects with a worker's token says what it has. The service keeps that in
`<home>/pull/workers/NAME.json`; when it last heard of the machine is the time of `NAME.seen`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mloc_dagster.files.atomic import write_text
from mloc_dagster.placement.inventory import Device
from mloc_dagster.placement.workers.room import Worker
from mloc_dagster.spec.base import Section
from mloc_dagster.store.home import Home

CONNECTED_SECONDS = 60.0
"""So long after it was heard of, a worker still counts as connected: it asks for work more often than that."""
_FORGOTTEN_SECONDS = 7 * 86_400.0
"""A worker that nobody declared is forgotten when nothing was heard of it for so long."""
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"


class Pull(Section):
    """A machine that connects to the service and asks for its stages: `mloc worker --connect`."""

    env: tuple[Annotated[str, Field(pattern=_VARIABLE)], ...] = ()
    """Names of environment variables of the service that its stages get."""
    stop_seconds: Annotated[float, Field(ge=2, le=600)] = 8.0
    """From the request to end until a stage is killed; it stores its state meanwhile."""
    away_seconds: Annotated[float, Field(ge=1, le=7 * 86_400)] = 900.0
    """So long a machine may be out of reach before its stages count as lost and are begun elsewhere."""


class Registered(BaseModel):
    """What a machine has said of itself; `cpu` in thousandths of a core, `memory` in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    instance: str
    """Of the worker's folder: two machines of one name differ in it."""
    host: str
    version: str
    cpu: int
    memory: int
    devices: tuple[Device, ...] = ()

    @property
    def worker(self) -> Worker:
        """It as a worker."""
        return Worker(self.name, self.cpu, self.memory, self.devices)


class Registry:
    """The machines that have entered themselves into a home."""

    def __init__(self, home: Home) -> None:
        self._folder = home.root / "pull" / "workers"

    def enter(self, given: Registered) -> None:
        """Keep what a machine says, in place of what it said before."""
        write_text(self._file(given.name), given.model_dump_json(indent=1))
        self.heard(given.name)

    def heard(self, name: str) -> None:
        """Note a sign of life."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file(name).with_suffix(".seen").touch()

    def seen(self, name: str) -> float:
        """When a machine was heard of, in seconds since the epoch; 0: never."""
        try:
            return self._file(name).with_suffix(".seen").stat().st_mtime
        except OSError:
            return 0.0

    def connected(self, name: str) -> bool:
        """Whether a machine is there now."""
        return time.time() - self.seen(name) < CONNECTED_SECONDS

    def get(self, name: str) -> Registered | None:
        """Return what a machine has said, if it ever did."""
        return _read(self._file(name))

    def all(self) -> Iterator[Registered]:
        """Yield those that were heard of within a week, by name."""
        for path in sorted(self._folder.glob("*.json")):
            found = _read(path)
            if found is not None and time.time() - self.seen(found.name) < _FORGOTTEN_SECONDS:
                yield found

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.json"  # names are plain: those of workers.yaml, or of tokens


def joined(workers: tuple[Worker, ...], pulling: Mapping[str, Pull], registry: Registry) -> tuple[Worker, ...]:
    """Return declared workers, gone while they are not connected, and after them those that nobody declared."""
    names = {worker.name for worker in workers}
    there = [_present(worker, registry) if worker.name in pulling else worker for worker in workers]
    entered = [_present(one.worker, registry) for one in registry.all() if one.name not in names]
    return (*there, *entered)


def _present(worker: Worker, registry: Registry) -> Worker:
    state = "ready" if registry.connected(worker.name) else "gone"
    return Worker(worker.name, worker.cpu, worker.memory, worker.devices, state)


def _read(path: Path) -> Registered | None:
    try:
        return Registered.model_validate_json(path.read_text("utf-8"))
    except (OSError, ValidationError):  # never written by us, or of another version
        return None
