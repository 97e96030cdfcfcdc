"""The launcher's side of a pool: finds it, starts it when there is none, and hands it a run."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from mloc_dagster.placement.launcher.fingerprint import pool_environment, pool_name
from mloc_dagster.placement.launcher.protocol import Answer, Request, receive_answer, send
from mloc_dagster.processes.sockets import connect
from mloc_dagster.store.home import Home

POOL_MODULE = "mloc_dagster.definitions.pool"
"""The program of a pool: that of the layer above, which knows the jobs."""
IDLE = "MLOC_POOL_IDLE"

_START_SECONDS = 60.0
_ANSWER_SECONDS = 60.0
_AGAIN_SECONDS = 60.0
"""After a pool could not be started, how long none is: a launcher must not wait for it at each run."""


class PoolUnavailable(Exception):
    """There is no pool, and none could be started; or it did not take the run. The message says why."""


def hand_over(home: Home, settings: Path, run_id: str, environment: Mapping[str, str]) -> int:
    """Have a pool start a run, in this process's folder and with `environment`; returns the worker's pid.

    Starts a pool when there is none that has the code as it is now. Raises PoolUnavailable.
    """
    umask = os.umask(0)
    os.umask(umask)
    request = Request(action="run", run_id=run_id, environment=_text(environment), folder=_folder(home), umask=umask)
    reason = ""
    for _ in range(2):  # a pool may end, or find its code changed, just when it is asked
        try:
            answer = _ask(_connection(home, settings, environment), request)
        except TimeoutError:
            reason = f"the pool gave no answer within {_ANSWER_SECONDS:g} s"
            break
        except (OSError, ValueError) as error:
            reason = f"the pool gave no answer ({type(error).__name__})"
            continue
        if answer.state == "started":
            return answer.pid
        reason = "code or settings keep changing"
    raise PoolUnavailable(f"{reason}; see {home.logs / 'pool.log'}")


def start(home: Home, settings: Path, environment: Mapping[str, str]) -> None:
    """Start a pool unless there is one; raises PoolUnavailable."""
    _connection(home, settings, environment).close()


def stop(home: Home) -> None:
    """Ask all pools of a home to end after the runs that are going on."""
    for address in _folder_of(home).glob("*.sock"):
        connection = connect(address)
        if connection is not None:
            try:
                _ask(connection, Request(action="stop"))
            except (OSError, ValueError):
                continue


def _ask(connection: socket.socket, request: Request) -> Answer:
    with connection:
        connection.settimeout(_ANSWER_SECONDS)
        send(connection, request)
        return receive_answer(connection)


def _connection(home: Home, settings: Path, environment: Mapping[str, str]) -> socket.socket:
    address = _folder_of(home) / f"{pool_name(settings, environment)}.sock"
    found = connect(address)
    if found is not None:
        return found
    failed = address.with_suffix(".failed")
    if failed.exists() and time.time() - failed.stat().st_mtime < _AGAIN_SECONDS:
        raise PoolUnavailable(f"a pool could not be started lately; see {home.logs / 'pool.log'}")
    try:
        address.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with address.with_suffix(".lock").open("a") as lock:
            _take(lock.fileno())
            found = connect(address)  # another launcher may have started it meanwhile
            if found is None:
                _start(home, pool_environment(settings, environment), address)
                found = connect(address)
    except OSError as error:
        raise PoolUnavailable(f"a pool could not be started: {error}") from None
    if found is None:
        raise PoolUnavailable(f"the pool ended at once; see {home.logs / 'pool.log'}")
    return found


def _take(lock: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise PoolUnavailable(f"another process takes over {_START_SECONDS:g} s to start it") from None
            time.sleep(0.02)


def _start(home: Home, environment: Mapping[str, str], address: Path) -> None:
    """Start the process and wait until it listens; it tells so through a pipe, whose end also tells its death."""
    home.logs.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    with (home.logs / "pool.log").open("ab") as log:
        pool = subprocess.Popen(
            [sys.executable, "-m", POOL_MODULE, str(address), str(writing)], pass_fds=(writing,), cwd=home.root,
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env={**environment, IDLE: os.environ.get(IDLE, "")},
        )  # fmt: skip
    os.close(writing)
    try:
        ready, _, _ = select.select([reading], [], [], _START_SECONDS)
        if ready and os.read(reading, 1):
            threading.Thread(target=pool.wait, daemon=True, name="reap-pool").start()
            return
        pool.kill()
        if not ready or pool.wait() > 0:  # it hangs, or its code has a fault; one that was killed says nothing
            address.with_suffix(".failed").touch()
        pool.wait()
    finally:
        os.close(reading)


def _text(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without the variables that are no text (bytes that are not UTF-8)."""
    return {key: value for key, value in environment.items() if (key + value).isascii() or _is_text(key + value)}


def _is_text(value: str) -> bool:
    try:
        return bool(value.encode())
    except UnicodeEncodeError:
        return False


def _folder_of(home: Home) -> Path:
    return home.root / "pool"


def _folder(home: Home) -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return str(home.root)
