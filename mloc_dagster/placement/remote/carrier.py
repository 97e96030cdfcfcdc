"""What brings a stage to another machine and watches it there."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mloc_dagster.placement.failures.cause import Cause

_FIRST_PORT, _PORTS = 20_000, 10_000


class CarrierError(Exception):
    """Work that cannot be started there; the message says why, in the words of the other side, and what to do.

    `lasting`: another attempt would fail alike.
    """

    def __init__(self, message: str, *, lasting: bool) -> None:
        super().__init__(message)
        self.lasting = lasting


class Unreachable(Exception):
    """The other side does not answer now; it may again."""


@dataclass(frozen=True)
class Order:
    """One attempt to start. `cpu` in thousandths of a core (None: no bound), `memory` in bytes, both for each replica.

    `environment` may hold secrets: it goes to the process and nowhere else.
    """

    job: str
    """What the work is: the same for all attempts at it."""
    attempt: str
    store: str
    key: str
    environment: Mapping[str, str] = field(repr=False)
    cpu: int | None
    share: int
    """Weight against others where cores are short, in thousandths of a core."""
    memory: int
    devices: Sequence[int] = ()
    """Of all replicas, which share them evenly."""
    replicas: int = 1
    """Containers that train as one."""
    timeout: float | None = None
    """Seconds that the stage may take; it is ended over there, and whoever starts it may bound it from outside, too."""
    labels: Mapping[str, str] = field(default_factory=dict)

    def devices_of(self, replica: int) -> Sequence[int]:
        """Return the devices of one replica."""
        share = len(self.devices) // self.replicas
        return self.devices[replica * share : (replica + 1) * share]

    @property
    def port(self) -> int:
        """Where replicas meet, on the first one: the same for all of an attempt, another one for most others."""
        return _FIRST_PORT + zlib.crc32(self.attempt.encode()) % _PORTS


@dataclass(frozen=True)
class Ending:
    """How it ended over there: `code` is None when nothing is left of it."""

    code: int | None
    out_of_memory: bool = False
    words: str = ""
    """What the other side says of it."""
    cause: Cause | None = None
    """Why, where the other side tells that."""


@dataclass(frozen=True)
class Sign:
    """A sign of life that is no part of the log, such as: it waits for a machine. `words` are for people."""

    words: str = ""


class Carried(Protocol):
    """One attempt that was started. All methods raise Unreachable."""

    attempt: str
    worker: str
    devices: tuple[str, ...]
    """Indexes of the GPUs that it was given."""
    place: str
    """For people: `container mloc-ab12 on gpu-a`."""

    def stream(self) -> Iterator[bytes | Sign]:
        """Yield what it has written and writes from now on, with signs of life; may end before it ends.

        What was yielded once is not yielded by a later call, which goes on where the one before was broken off.
        """
        ...

    def ending(self) -> Ending | None:
        """How it ended, or None while it runs."""
        ...

    def stop(self) -> None:
        """Ask it to end, then end it, within its grace."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    def remove(self, *, failed: bool) -> None:
        """Clear it away; one that failed may be kept for a while."""
        ...


class Carrier(Protocol):
    """One worker."""

    grace: float
    """Seconds that an attempt gets to end."""

    def find(self, job: str) -> Sequence[Carried]:
        """Attempts at a piece of work that run, or have ended and are not cleared away. Raises Unreachable."""
        ...

    def start(self, order: Order) -> Carried:
        """Start an attempt; raises CarrierError or Unreachable."""
        ...
