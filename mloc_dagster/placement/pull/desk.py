"""Where attempts lie between the run that follows them and the machine that carries them out: `<home>/pull/attempts/`.

A folder an attempt: `order.json`, the `log` as far as it has come, `stop.json` when it is to end, `end.json` when it
has. Who gives an attempt up takes the folder away: from then on the machine is told that, whatever it still brings.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from mloc_dagster.files.atomic import locked, write_text
from mloc_dagster.placement.failures.cause import Cause
from mloc_dagster.store.home import Home

_ATTEMPT = re.compile(r"[0-9a-f]{12}")
_ORDER, _STOP, _END, _LOG = "order.json", "stop.json", "end.json", "log"
_MOST_BYTES = 1 << 18
_DOCUMENT = TypeVar("_DOCUMENT", bound=BaseModel)


class GivenUp(Exception):
    """The control plane does not know the attempt, or not any more."""


class Gap(Exception):
    """A part of a log that comes before another one has; `size` is how much there is."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the log has {size} bytes")
        self.size = size


class PullOrder(BaseModel):
    """One attempt, as it lies on the disk: names of environment variables, never their values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempt: str
    job: str
    key: str
    worker: str
    names: tuple[str, ...] = ()
    """Environment variables that the service gives it."""
    memory: int = 0
    """Bytes that it may have; 0: no bound."""
    devices: tuple[int, ...] = ()
    grace: float
    labels: dict[str, str] = {}


class Stop(BaseModel):
    """The request to end: `kill` at once, else after the grace."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kill: bool = False


class End(BaseModel):
    """How an attempt ended: its exit code (None: nothing is left of it), and what is said of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: int | None
    out_of_memory: bool = False
    words: str = ""
    cause: Cause | None = None


class Desk:
    """The attempts of a home; safe to use from the service and from the processes of runs."""

    def __init__(self, home: Home) -> None:
        self._folder = home.root / "pull" / "attempts"

    def offer(self, order: PullOrder) -> None:
        """Put an attempt down for its worker."""
        write_text(self._folder / order.attempt / _ORDER, order.model_dump_json())

    def order(self, attempt: str) -> PullOrder | None:
        """Return an attempt, or None when it is not there or was given up."""
        return _read(self._place(attempt) / _ORDER, PullOrder) if _ATTEMPT.fullmatch(attempt) else None

    def orders(self, worker: str | None = None) -> Iterator[PullOrder]:
        """Yield attempts, of one worker or of all; also those that have ended and are not cleared away."""
        with suppress(FileNotFoundError):
            for name in sorted(os.listdir(self._folder)):
                found = self.order(name)
                if found is not None and worker in (None, found.worker):
                    yield found

    def append(self, attempt: str, offset: int, block: bytes) -> int:
        """Add to a log what is not there yet; returns how many bytes it has then, on the disk.

        Raises GivenUp, and Gap when something is missing before `offset`.
        """
        with self._open(attempt) as folder, (folder / _LOG).open("ab") as file:
            size = file.tell()
            if offset > size:
                raise Gap(size)
            new = block[size - offset :]
            if new and not (folder / _END).exists():
                file.write(new)
                file.flush()
                os.fdatasync(file.fileno())
            return file.tell()

    def read(self, attempt: str, offset: int) -> bytes:
        """Return the log from there on, so much at a time; empty when there is none."""
        with suppress(OSError), (self._place(attempt) / _LOG).open("rb") as file:
            file.seek(offset)
            return file.read(_MOST_BYTES)
        return b""

    def begun(self, attempt: str) -> bool:
        """Whether its machine has brought anything."""
        return (self._place(attempt) / _LOG).exists()

    def end(self, attempt: str, end: End) -> None:
        """Note how an attempt ended; the first to say it is believed. Raises GivenUp."""
        with self._open(attempt) as folder:
            if not (folder / _END).exists():
                write_text(folder / _END, end.model_dump_json())

    def ending(self, attempt: str) -> End | None:
        """How an attempt ended, if it has."""
        return _read(self._place(attempt) / _END, End)

    def stop(self, attempt: str, *, kill: bool) -> None:
        """Ask for an attempt's end."""
        with suppress(GivenUp), self._open(attempt) as folder:
            write_text(folder / _STOP, Stop(kill=kill).model_dump_json())

    def stopping(self, attempt: str) -> Stop | None:
        """The request to end, if there is one."""
        return _read(self._place(attempt) / _STOP, Stop)

    def give_up(self, attempt: str) -> None:
        """Take an attempt away."""
        with suppress(GivenUp), self._open(attempt) as folder:
            gone = folder.with_name(f".{folder.name}.gone")
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    @contextmanager
    def _open(self, attempt: str) -> Iterator[Path]:
        """Hold an attempt's folder against who else changes it; raises GivenUp."""
        place = self._place(attempt)
        try:
            with locked(place):
                if self.order(attempt) is None:
                    raise GivenUp(attempt)
                yield place
        except (FileNotFoundError, NotADirectoryError):
            raise GivenUp(attempt) from None

    def _place(self, attempt: str) -> Path:
        return self._folder / attempt


def _read(path: Path, kind: type[_DOCUMENT]) -> _DOCUMENT | None:
    try:
        return kind.model_validate_json(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
