"""A machine that asks the service for work: `mloc worker --connect`. It needs no way in, only one out.

It may be killed at any moment: attempts go on in their keepers, and the next agent in the same folder takes them over.
"""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from executors.remote.keeper import Settings
from mloc_dagster import __version__
from mloc_dagster.client import Refused
from mloc_dagster.client.outbound import WorkerClient
from mloc_dagster.client.shapes import Assignment, Entered, Work
from mloc_dagster.files.atomic import write_text
from mloc_dagster.placement.pull.held import Held
from mloc_dagster.placement.workers.room import Worker

WAIT = "MLOC_PULL_WAIT_SECONDS"
"""Seconds that one request waits for work (20)."""
_LONGEST_PAUSE_SECONDS = 5.0
_PASSING = (408, 429, 500, 502, 503, 504)
_NOT_ENTERED = 428
_LAST_SECONDS = 15.0
_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Where:
    """The service, what opens it, and the folder of this worker on this machine."""

    address: str
    token_file: Path
    folder: Path
    ca: Path | None = None
    most_log: int = 1 << 30
    """Bytes of one attempt's log that may wait here."""
    most_inputs: int = 200 << 30
    """Bytes of inputs that are kept for other stages."""


class Untrusted(Exception):
    """The certificate of the service is not one that this machine trusts."""


class Agent:
    """One worker. `told` gets words for people."""

    def __init__(self, where: Where, name: str, hardware: Worker, told: Callable[[str], None]) -> None:
        self._where, self._hardware, self._told = where, hardware, told
        self._client = WorkerClient(where.address, where.token_file, name, ca=where.ca)
        self._held: dict[str, Held] = {}
        self._entered: Entered | None = None
        self._instance = _instance(where.folder)
        self._pause, self._away = 0.5, False
        self._failure: Exception | None = None

    def run(self, leaving: threading.Event) -> None:
        """Ask and work until `leaving` is set; then have attempts store their state and end.

        Raises Refused, and Untrusted when the certificate of the service is not to be trusted.
        """
        asking = threading.Thread(target=self._ask, args=(leaving,), daemon=True, name="ask")
        asking.start()
        while asking.is_alive() and not leaving.wait(_LOOK_SECONDS):
            pass
        for held in list(self._held.values()):
            held.stop(kill=self._failure is not None)
        until = time.monotonic() + _LAST_SECONDS
        for held in list(self._held.values()):
            held.wait(max(0.0, until - time.monotonic()))
        if self._failure is not None:
            raise self._failure

    def _ask(self, leaving: threading.Event) -> None:
        try:
            while not leaving.is_set():
                self._turn(leaving)
        except Exception as error:
            self._failure = error

    def _turn(self, leaving: threading.Event) -> None:
        try:
            if self._entered is None:
                self._enter()
            work = self._client.next(
                self._instance, self._holding(), [one.attempt for one in self._held.values() if one.stopping],
                _wait_seconds(),
            )  # fmt: skip
        except Refused as refused:
            if refused.status == _NOT_ENTERED:
                self._entered = None
                return
            if refused.status not in _PASSING:
                raise
            self._rest(leaving, str(refused))
        except OSError as error:
            if self._entered is None and isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError):
                raise Untrusted(str(getattr(error, "reason", error))) from None
            self._rest(leaving, str(error))
        else:
            if self._away:
                self._told("connected again")
            self._pause, self._away = 0.5, False
            if not leaving.is_set():
                self._do(work)

    def _enter(self) -> None:
        hardware = self._hardware
        self._entered = self._client.register({
            "instance": self._instance, "host": socket.gethostname(), "version": __version__, "cpu": hardware.cpu,
            "memory": hardware.memory, "devices": [asdict(device) for device in hardware.devices],
        })  # fmt: skip
        self._told(f"{self._client.name} is connected to {self._where.address}")
        if not self._held:
            self._resume()

    def _resume(self) -> None:
        """Take over what an earlier agent has begun; what it could not start is handed out again."""
        for folder in sorted(self._attempts.glob("*")):
            if Held.was_begun(folder):
                self._told(f"{folder.name} goes on")
                self._held[folder.name] = Held.resume(folder, self._client, self._told)
        if not self._held:
            shutil.rmtree(self._where.folder / "work", ignore_errors=True)  # of keepers that were killed

    def _do(self, work: Work) -> None:
        for attempt in work["gone"]:
            held = self._held.get(attempt)
            if held is not None and not held.ending:  # else its end has just been taken
                self._told(f"{attempt}: was given up; it is ended")
                held.discard()
        for request in work["stop"]:
            if request["attempt"] in self._held:
                self._held[request["attempt"]].stop(kill=request["kill"])
        for order in work["begin"]:
            if order["attempt"] not in self._held:
                self._begin(order)

    def _begin(self, order: Assignment) -> None:
        assert self._entered is not None
        where = self._where
        settings = Settings(
            folder=self._attempts / order["attempt"], root=where.folder, attempt=order["attempt"],
            worker=self._client.name, key=order["key"], address=where.address, token_file=where.token_file, ca=where.ca,
            patience=self._entered["away_seconds"], memory=order["memory"],
            most_log=where.most_log, most_inputs=where.most_inputs,
        )  # fmt: skip
        environment = {**order["environment"], "MLOC_ENGINE_IDLE": "0", "PYTHONUNBUFFERED": "1"}
        self._told(f"{order['attempt']} begins")
        self._held[order["attempt"]] = Held.begin(settings, order["grace"], environment, self._client, self._told)

    def _holding(self) -> list[str]:
        self._held = {name: held for name, held in self._held.items() if not held.over}
        return list(self._held)

    def _rest(self, leaving: threading.Event, why: str) -> None:
        if not self._away:
            self._told(f"{self._where.address} does not answer: {why}; work goes on meanwhile")
        self._away = True
        leaving.wait(self._pause)
        self._pause = min(_LONGEST_PAUSE_SECONDS, self._pause * 2)

    @property
    def _attempts(self) -> Path:
        return self._where.folder / "attempts"


def _instance(folder: Path) -> str:
    """What tells this folder from that of any other machine; made once."""
    path = folder / "instance"
    with suppress(FileNotFoundError):
        return path.read_text("utf-8").strip()
    write_text(path, uuid.uuid4().hex)
    return path.read_text("utf-8").strip()


def _wait_seconds() -> float:
    text = os.environ.get(WAIT) or "20"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 30:
        raise ValueError(f"{WAIT} is {text!r}: write seconds, 30 at most")
    return seconds
