"""Keeps one attempt on a machine that reaches out: `python -m executors.remote.keeper SETTINGS.json`.

It goes on whatever happens to the process that started it, and holds the lock of its file `alive` as long as it lives.
All that the attempt says goes to the spool beside it; at the end there is `exit.json`.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from executors.attempt import INTERNAL_FAULT, USER_FAULT
from executors.remote.cache import prune
from executors.remote.spool import Spool
from executors.remote.step import Step, read_job
from executors.remote.store import Store, StoreError
from executors.remote.through import ServiceFiles
from mloc_dagster.client.outbound import WorkerClient
from mloc_dagster.files.atomic import write_text

SPOOL, ALIVE, PID, EXIT, ERRORS = "spool", "alive", "pid", "exit.json", "keeper.log"
_BLOCK = 1 << 16


class Settings(BaseModel):
    """What a keeper is told. Nothing in it is secret: `token_file` is where the worker's token is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    """Of the attempt."""
    root: Path
    """Of the worker: work and inputs."""
    attempt: str
    worker: str
    key: str
    address: str
    token_file: Path
    ca: Path | None = None
    patience: float
    """Seconds that transfers bear a connection that is away."""
    memory: int = 0
    """Bytes that the stage may have; 0: no bound."""
    most_log: int
    """Bytes of its log that may wait here."""
    most_inputs: int
    """Bytes of inputs that are kept for other stages."""


class Exit(BaseModel):
    """How an attempt ended here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: int
    words: str = ""


def main(arguments: list[str]) -> int:
    """Carry the attempt out and leave `exit.json`; returns the exit code."""
    settings = Settings.model_validate_json(Path(arguments[0]).read_text("utf-8"))
    write_text(settings.folder / PID, str(os.getpid()))  # whoever started this may be dead by now
    relay = _spooled(Spool(settings.folder / SPOOL, settings.most_log))
    try:
        end = Exit(code=_carry_out(settings))
    except StoreError as error:
        print(error, flush=True)
        end = Exit(code=INTERNAL_FAULT, words=str(error))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)  # nobody writes to the relay any more
    relay.join(10)
    write_text(settings.folder / EXIT, end.model_dump_json())
    prune(settings.root / "inputs", settings.most_inputs)
    return end.code


def _carry_out(settings: Settings) -> int:
    store = _store(settings)
    job = read_job(store, settings.key)
    if job is None:
        return USER_FAULT
    step = Step(store, settings.key, job, settings.root, settings.root / "inputs", contained=False,
                memory=settings.memory)  # fmt: skip
    code = step.run().code
    step.clear()
    return code if code >= 0 else 128 - code


def _store(settings: Settings) -> Store:
    client = WorkerClient(settings.address, settings.token_file, settings.worker, ca=settings.ca)
    return Store(settings.address, files=ServiceFiles(client), patience=settings.patience)


def _spooled(spool: Spool) -> threading.Thread:
    """Have all that this process writes go to a spool; the thread ends when nobody can write any more."""
    reading, writing = os.pipe()
    for number in (1, 2):
        os.dup2(writing, number)
    os.close(writing)

    def relay() -> None:
        while block := os.read(reading, _BLOCK):
            spool.write(block)

    thread = threading.Thread(target=relay, daemon=True, name="spool")
    thread.start()
    return thread


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
