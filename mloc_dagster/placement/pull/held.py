"""One attempt on the machine that carries it out: its keeper, and the way of its log and end to the service."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

from executors.group import signal_group
from executors.remote.keeper import ALIVE, ERRORS, EXIT, PID, SPOOL, Exit, Settings
from executors.remote.spool import Spool
from mloc_dagster.client import Refused
from mloc_dagster.client.outbound import WorkerClient
from mloc_dagster.files.atomic import write_text
from mloc_dagster.placement.local.process import last_lines
from mloc_dagster.spec.base import Json

_SETTINGS, _GRACE = "settings.json", "grace"
_LOOK_SECONDS = 0.3
_LONGEST_PAUSE_SECONDS = 5.0
_PART = 1 << 18
_MORE_SECONDS = 3.0
_GIVEN_UP = (404, 410)


class Held:
    """An attempt in its folder. `told` gets words for people."""

    def __init__(self, folder: Path, client: WorkerClient, told: Callable[[str], None]) -> None:
        self.attempt = folder.name
        self._folder, self._client, self._told = folder, client, told
        self._over = threading.Event()
        self.stopping = self.ending = False
        self._courier = threading.Thread(target=self._bring, daemon=True, name=f"courier-{self.attempt}")

    @classmethod
    def begin(
        cls, settings: Settings, grace: float, environment: Mapping[str, str], client: WorkerClient,
        told: Callable[[str], None],
    ) -> Held:  # fmt: skip
        """Start an attempt; its keeper outlives this process. Secrets go into the keeper's environment alone."""
        folder = settings.folder
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / _SETTINGS, settings.model_dump_json())
        write_text(folder / _GRACE, f"{grace:g}")
        alive = os.open(folder / ALIVE, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(alive, fcntl.LOCK_EX)
        try:
            with (folder / ERRORS).open("ab") as errors:
                keeper = subprocess.Popen(
                    [sys.executable, "-u", "-m", "executors.remote.keeper", str(folder / _SETTINGS)],
                    stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True,
                    pass_fds=(alive,), env={**os.environ, **environment}, cwd=folder,
                )  # fmt: skip
        finally:
            os.close(alive)
        write_text(folder / PID, str(keeper.pid))
        threading.Thread(target=keeper.wait, daemon=True, name="reaper").start()
        return cls.resume(folder, client, told)

    @staticmethod
    def was_begun(folder: Path) -> bool:
        """Whether an earlier process has started the keeper of an attempt."""
        return (folder / PID).exists() or _lives(folder)

    @classmethod
    def resume(cls, folder: Path, client: WorkerClient, told: Callable[[str], None]) -> Held:
        """Go on with an attempt that an earlier process has begun."""
        held = cls(folder, client, told)
        held._courier.start()
        return held

    @property
    def over(self) -> bool:
        """Whether nothing of it is left here."""
        return self._over.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for that; returns whether it is so."""
        return self._over.wait(seconds)

    def stop(self, *, kill: bool) -> None:
        """Ask it to end; it is killed after its grace, or at once."""
        first, self.stopping = not self.stopping, True
        if kill:
            self._kill()
        elif first:
            threading.Thread(target=self._end, daemon=True, name=f"stop-{self.attempt}").start()

    def discard(self) -> None:
        """Kill it and forget it: it was given up."""
        self._kill()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._over.set()

    def _end(self) -> None:
        grace = float((self._folder / _GRACE).read_text())
        if pid := self._keeper():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if not self._over.wait(grace + _MORE_SECONDS):
            self._kill()

    def _kill(self) -> None:
        """Kill the keeper and all that it has started; each has a process group of its own."""
        pid = self._keeper()
        with suppress(psutil.Error):
            for process in (
                reversed([psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]) if pid else ()
            ):
                signal_group(process.pid, signal.SIGKILL)
                process.kill()

    def _keeper(self) -> int | None:
        """The process id of the keeper, if it lives: it holds a lock as long."""
        if not _lives(self._folder):
            return None
        try:
            return int((self._folder / PID).read_text())
        except (OSError, ValueError):
            return None

    def _bring(self) -> None:
        """Bring what it says, then how it ended, and forget it; a connection that is away is waited for."""
        try:
            spool = Spool(self._folder / SPOOL)
            arrived = self._often(lambda: self._client.log(self.attempt, spool.first, b""))
            while True:
                lives = _lives(self._folder)  # asked before the spool is read: what comes last is in it then
                if block := spool.read(arrived, _PART):
                    arrived = self._often(partial(self._client.log, self.attempt, arrived, block))
                    spool.drop(arrived)
                elif not lives:
                    break
                time.sleep(_LOOK_SECONDS if len(block) < _PART else 0)
            self.ending = True
            self._often(lambda: self._client.end(self.attempt, self._ending()))
        except Refused as refused:
            if not self._over.is_set():
                what = "was given up" if refused.status in _GIVEN_UP else str(refused)
                self._told(f"{self.attempt}: {what}; it is ended")
        except FileNotFoundError:
            if not self._over.is_set():
                raise
        self.discard()

    def _ending(self) -> dict[str, Json]:
        try:
            end = Exit.model_validate_json((self._folder / EXIT).read_text("utf-8"))
        except FileNotFoundError:
            words = (
                last_lines(self._folder / ERRORS, 5)
                or "its process is gone: it was killed, or the machine started anew"
            )
            return {"code": None if not self.stopping else 137, "words": words}
        return {"code": end.code, "words": end.words}

    def _often(self, action: Callable):
        """Do something until the service has answered; raises Refused."""
        pause = _LOOK_SECONDS
        while True:
            try:
                return action()
            except OSError:
                if self._over.is_set():
                    raise FileNotFoundError(self._folder) from None
                time.sleep(pause)
                pause = min(_LONGEST_PAUSE_SECONDS, pause * 2)


def _lives(folder: Path) -> bool:
    """Whether a keeper holds the lock of an attempt."""
    try:
        with (folder / ALIVE).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
