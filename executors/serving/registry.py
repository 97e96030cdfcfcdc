"""Engines of this machine: a folder each, under `<home>/cache/engines/`.

`<key>/engine.json` says what is loaded, `secret` (mode 0600) holds the token, `state.json` who serves it where,
`leases/` one file for each user, `engine.log` what the engine prints. `<key>.lock` is held by whoever starts or ends
the engine.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict

from executors.base import Interrupted
from executors.inference.engine import Weights
from mloc_dagster.files.atomic import write_text
from mloc_dagster.spec.model import Transformers, Vllm

Kind = Literal["transformers", "vllm"]
LEASE_SECONDS = 15.0
"""A lease that was not renewed for this long counts for nothing."""
_POLL_SECONDS = 0.05
_END_SECONDS = 10.0


class EngineSpec(BaseModel):
    """What an engine process loads, and how long it stays without users."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    kind: Kind
    name: str
    """What the endpoint calls the model."""
    model: Path
    digest: str
    """Of the weights, and of the files beside them."""
    dtype: str
    devices: tuple[str, ...] = ()
    on_gpu: bool = False
    trust_remote_code: bool = False
    transformers: Transformers = Transformers()
    vllm: Vllm = Vllm()
    lora_rank: int = 0
    """vLLM: the largest rank of adapters that it can apply; 0 for none."""
    private: str = ""
    """Sets an engine of one user apart from all others."""
    idle_seconds: float = 0.0
    most_idle: int = 1

    def key(self) -> str:
        """Equal keys mean that one engine serves both."""
        of_this_use = {"name", "model", "idle_seconds", "most_idle"}
        told = [socket.gethostname(), self.model_dump(mode="json", exclude=of_this_use)]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def weights(self) -> Weights:
        """What the Transformers engine loads."""
        return Weights(self.model, trust_remote_code=self.trust_remote_code)


class EngineState(BaseModel):
    """Who serves an engine, and since when it has no users."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    born: float
    """When the process started; another process with the same id has another time."""
    host: str
    port: int = 0
    ready: bool = False
    chat_template: bool = False
    context: int | None = None
    idle_since: float | None = None
    """Seconds since the epoch; None while somebody uses it."""


class EngineFolder:
    """The folder of one engine."""

    def __init__(self, root: Path, key: str) -> None:
        self.root = root
        self.key = key
        self.path = root / key

    def spec(self) -> EngineSpec:
        """What it loads; raises OSError or ValueError when the engine is gone."""
        return EngineSpec.model_validate_json((self.path / "engine.json").read_text("utf-8"))

    def state(self) -> EngineState | None:
        """Who serves it; None while nobody does."""
        try:
            return EngineState.model_validate_json((self.path / "state.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None

    def write_state(self, state: EngineState) -> None:
        """Replace the state; raises OSError when the folder is gone."""
        if not self.path.is_dir():
            raise FileNotFoundError(self.path)
        write_text(self.path / "state.json", state.model_dump_json())

    def token(self) -> str:
        """The bearer token."""
        return (self.path / "secret").read_text("utf-8")

    def fault(self) -> dict[str, str] | None:
        """`{what, hint}` of an engine that could not start."""
        try:
            return json.loads((self.path / "error.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None

    def log_tail(self, count: int = 20) -> str:
        """The last lines that the engine printed."""
        try:
            lines = (self.path / "engine.log").read_text("utf-8", "replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-count:])

    def prepare(self, spec: EngineSpec) -> None:
        """Make the folder for a new engine; the lock must be held."""
        (self.path / "leases").mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)
        for name in ("state.json", "error.json", "secret"):
            (self.path / name).unlink(missing_ok=True)
        write_private(self.path / "secret", secrets.token_urlsafe(32))
        write_text(self.path / "engine.json", spec.model_dump_json(indent=1))

    def process(self) -> psutil.Process | None:
        """The live process that serves it."""
        state = self.state()
        return None if state is None or state.host != socket.gethostname() else alive(state.pid, state.born)

    def memory(self) -> int:
        """Bytes of main memory that its processes hold."""
        process = self.process()
        with suppress(psutil.Error):
            family = [process, *process.children(recursive=True)] if process else []
            return sum(one.memory_info().rss for one in family)
        return 0

    def add_lease(self) -> Path:
        """Note this process as a user; renew it with `os.utime`, give it back by removing the file."""
        path = self.path / "leases" / uuid.uuid4().hex
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"pid": os.getpid(), "born": psutil.Process().create_time()}))
        return path

    def leases(self) -> int:
        """How many users it has; files of dead ones are removed, a silent one may beat again."""
        count = 0
        for path in (self.path / "leases").glob("[0-9a-f]*"):
            if _holds(path):
                count += 1
            elif not _owner_lives(path):
                path.unlink(missing_ok=True)
        return count

    @contextmanager
    def locked(self, stopped: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Hold the lock of the key; raises Interrupted when `stopped` turns true while waiting."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / f"{self.key}.lock").open("a") as file:
            while not _try_lock(file.fileno()):
                if stopped():
                    raise Interrupted
                time.sleep(_POLL_SECONDS)
            yield

    @contextmanager
    def locked_soon(self, seconds: float = 0.0) -> Iterator[bool]:
        """Try to hold the lock for so long; gives False when somebody else holds it, or the registry is gone."""
        deadline = time.monotonic() + seconds
        try:
            file = (self.root / f"{self.key}.lock").open("a")
        except FileNotFoundError:
            yield False
            return
        with file:
            while not (alone := _try_lock(file.fileno())) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
            yield alone

    def remove(self) -> None:
        """Forget the engine; its process ends when it sees that."""
        aside = self.path.with_name(f".{self.key}.{uuid.uuid4().hex[:6]}")
        with suppress(OSError):
            self.path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def end(self) -> None:
        """End the engine's process group, and forget it; the lock must be held."""
        process = self.process()
        if process is not None:
            end_group(process)
        self.remove()


def registry_of(cache: Path) -> Path:
    """Where the engines of a home's cache are noted."""
    return cache / "engines"


def engines_of(root: Path) -> list[EngineFolder]:
    """Engines of this machine whose process lives, by key."""
    found = [EngineFolder(root, path.name) for path in sorted(root.glob("[0-9a-f]*")) if path.is_dir()]
    return [folder for folder in found if folder.process() is not None]


def alive(pid: int, born: float) -> psutil.Process | None:
    """The process of that id when it is the one that was born then, and no zombie."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - born) < 0.05
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def end_group(process: psutil.Process) -> None:
    """SIGTERM to an engine, a moment to free its memory, then SIGKILL to its whole group."""
    with suppress(psutil.Error):
        process.terminate()
    with suppress(psutil.Error):
        process.wait(_END_SECONDS)
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)


def write_private(path: Path, text: str) -> None:
    """Write a new file that only its owner can read."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)


def _holds(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < LEASE_SECONDS and _owner_lives(path)
    except OSError:
        return False


def _owner_lives(path: Path) -> bool:
    try:
        owner = json.loads(path.read_text("utf-8"))
        return alive(owner["pid"], owner["born"]) is not None
    except (OSError, ValueError, KeyError):
        return False


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
