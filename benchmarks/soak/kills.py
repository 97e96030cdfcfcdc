"""What is killed: a process of the home, by what it is for, so that rare ones are hit as well as common ones."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks.soak.service import processes_of
from mloc_dagster.store.home import Home

_WEIGHTS = {
    "worker": 27, "step": 18, "host": 27, "child of a step": 5, "pool": 9, "code server": 4, "daemon": 5,
    "web server": 3, "mloc up": 2,
}  # fmt: skip
"""How often each is hit. The last four take what runs them down for a while, which on few cores is long."""
_PATIENCE_SECONDS = 5.0
"""How long to wait for a process of the kind that is to be hit before another kind is drawn."""


class Killer:
    """Kills with SIGKILL, and counts what it hit."""

    def __init__(self, home: Home, rng: random.Random, log: Path) -> None:
        self._home, self._rng, self._log = home, rng, log
        self._wanted, self._until = "", 0.0
        self.hits: Counter[str] = Counter()

    def kill_one(self) -> bool:
        """Kill a process of the kind that is drawn; False: there is none just now, ask again."""
        there: dict[str, list[psutil.Process]] = {}
        for process in processes_of(self._home):
            there.setdefault(role(process), []).append(process)
        if time.monotonic() > self._until:
            [self._wanted] = self._rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
            self._until = time.monotonic() + _PATIENCE_SECONDS
        kind = self._wanted
        if kind not in there:
            return False
        victim = self._rng.choice(sorted(there[kind], key=lambda process: process.pid))
        try:
            victim.kill()
        except psutil.Error:
            return False
        with self._log.open("a") as log:
            seen = {one: len(found) for one, found in there.items()}
            log.write(f"{time.strftime('%H:%M:%S')} {kind} {victim.pid} of {seen}\n")
        self.hits[kind] += 1
        self._until = 0.0
        return True


def role(process: psutil.Process) -> str:
    """What a process of a home is for."""
    try:
        command = " ".join(process.cmdline())
        found = next((kind for kind, known in _ROLES.items() if known(command, process.pid)), "other")
    except (psutil.Error, OSError):
        return "gone"
    return found


def _output(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/fd/1")


def _of_pool(command: str) -> bool:
    return "mloc_dagster.definitions.pool" in command or "mloc_dagster.definitions.worker" in command


_ROLES: dict[str, Callable[[str, int], bool]] = {
    "host": lambda command, pid: "executors.host" in command,
    "child of a step": lambda command, pid: "time.sleep(300)" in command,
    "pool": lambda command, pid: _of_pool(command) and _output(pid).endswith("pool.log"),
    "worker": lambda command, pid: _of_pool(command) and os.getsid(pid) == pid,
    "step": lambda command, pid: _of_pool(command),
    "code server": lambda command, pid: " api grpc" in command or "code-server" in command,
    "daemon": lambda command, pid: "mloc_dagster.definitions.daemon" in command,
    "web server": lambda command, pid: "dagster_webserver" in command or "mloc_dagster.service" in command,
    "mloc up": lambda command, pid: "mloc_dagster.cli" in command,
}
