"""A service with its daemon, a machine that reaches it only through a connection that a test can cut."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import requests

from mloc_dagster.service.tokens import Tokens, write_private
from mloc_dagster.store.home import Home
from tests.definitions.conftest import home, installed, instance, nap, workspace
from tests.placement.failures.conftest import fail
from tests.waiting import wait_for

__all__ = ["fail", "home", "installed", "instance", "nap", "workspace"]


class Line:
    """A TCP connection to somewhere else: `cut` ends what goes through and refuses the rest, until `mend`."""

    def __init__(self, port: int) -> None:
        self._to, self.whole = port, threading.Event()
        self.whole.set()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.carried = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self.whole.clear()
        for one in list(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self.whole.set()

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to)) if self.whole.is_set() else None
            except OSError:
                if self._listener.fileno() < 0:
                    return
                near.close()
                continue
            if far is None:
                near.close()
                continue
            self._open |= {near, far}
            threading.Thread(target=self._carry, args=(near, far), daemon=True).start()
            threading.Thread(target=self._carry, args=(far, near), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while block := one.recv(1 << 16):
                self.carried += len(block)
                other.sendall(block)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            self._open.discard(end)


class Place:
    """A service and its daemon for one home; each may be killed and started again on the same port."""

    def __init__(self, home: Home) -> None:
        self.home = home
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        self.home.dagster.mkdir(parents=True, exist_ok=True)
        workspace = self.home.dagster / "workspace.yaml"
        workspace.write_text(
            "load_from:\n  - python_module: {module_name: mloc_dagster.definitions, location_name: mloc}\n"
        )
        commands = {
            "web": ["mloc_dagster.service", "--port", str(self.port), "-w", str(workspace)],
            "daemon": ["mloc_dagster.definitions.daemon", "-w", str(workspace)],
        }
        with (self.home.root / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", *commands[name]], cwd=self.home.root, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        if name == "web":
            wait_for(self._ready, "the service", 120)

    def kill(self, name: str) -> None:
        process = self._processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def end(self) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGINT)
        for process in self._processes.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)

    def _ready(self) -> bool:
        with suppress(requests.RequestException):
            return requests.get(f"http://127.0.0.1:{self.port}/readyz", timeout=5).ok
        return False


class Machine:
    """One `mloc worker` in a process of its own, with nothing of the home in its environment."""

    def __init__(self, folder: Path, address: str, token: str, *more: str, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._log = folder, folder / "worker.log"
        write_private(folder / "token", token + "\n")
        self._command = [str(Path(sys.executable).with_name("mloc")), "worker", "--connect", address,
                         "--token-file", str(folder / "token"), "--folder", str(folder / "kept"), *more]  # fmt: skip
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLOC_", "DAGSTER_"))}
        self._environment = {**kept, "MLOC_PULL_WAIT_SECONDS": "2", "COLUMNS": "300", **environment}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Machine:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=self.folder, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        return self

    @property
    def said(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """End it as Ctrl-C does; what it has begun ends with it."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@pytest.fixture
def place(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The service; this machine itself has no room for stages."""
    home.root.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("MLOC_STAGE_POOL", "0")
    found = Place(home)
    yield found
    found.end()


@pytest.fixture
def line(place: Place) -> Iterator[Line]:
    found = Line(place.port)
    yield found
    found.close()


@pytest.fixture
def machine(place: Place, line: Line, tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    """Start machines of a name; they are ended after the test."""
    with ExitStack() as stack:

        def do(name: str = "far", *more: str, **environment: str) -> Machine:
            token = Tokens(place.home).create(name, "worker")
            made = Machine(tmp_path / name, f"http://127.0.0.1:{line.port}", token, *more, **environment)
            stack.callback(made.end)
            return made.start()

        yield do


def declare(home: Home, text: str) -> None:
    """Write workers.yaml."""
    home.root.mkdir(parents=True, exist_ok=True)
    (home.root / "workers.yaml").write_text(text)
