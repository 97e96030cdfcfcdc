"""The program of a worker's image: `python -m executors.remote STORE KEY`; the package says what it does.

MLOC_REMOTE_ROOT is the folder for the work (default `/tmp/mloc`), MLOC_REMOTE_CACHE one for inputs that other steps on
this machine read again (default inside of it). Exits as `executors.host` does.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from executors.attempt import INTERNAL_FAULT, USER_FAULT
from executors.remote import messages
from executors.remote.document import RemoteJob
from executors.remote.step import Step, read_job
from executors.remote.store import Store, StoreError

_OPEN_SECONDS = 60.0
_BEAT_SECONDS = 2.0


def main(arguments: list[str]) -> int:
    """Carry out the attempt that is named; returns the exit code."""
    if len(arguments) != 2:
        print("usage: python -m executors.remote STORE KEY", file=sys.stderr)
        return USER_FAULT
    url, key = arguments
    try:
        store, job = _opened(url, key)
        if job is None:
            return USER_FAULT
        root = Path(os.environ.get("MLOC_REMOTE_ROOT") or "/tmp/mloc")
        code = Step(store, key, job, root, _cache(root)).run().code
    except StoreError as error:
        print(error, file=sys.stderr)
        return INTERNAL_FAULT
    return code if code >= 0 else 128 - code


def _opened(url: str, key: str) -> tuple[Store, RemoteJob | None]:
    """The store and the attempt's document; says meanwhile that this process lives. Raises StoreError."""
    found: list[tuple[Store, RemoteJob | None] | Exception] = []

    def open_it() -> None:
        try:
            store = Store(url)
            found.append((store, read_job(store, key)))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=open_it, daemon=True, name="open")
    thread.start()
    until = time.monotonic() + _OPEN_SECONDS
    while thread.is_alive() and time.monotonic() < until:
        messages.say(messages.BEAT)
        thread.join(_BEAT_SECONDS)
    if not found:
        raise StoreError(
            f"the artifact store {url} does not answer within {_OPEN_SECONDS:g} s\n"
            "Check that this machine reaches that address, and the proxy that it is to use"
        )
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _cache(root: Path) -> Path:
    """The folder for inputs; one inside of the root when that which is shared cannot be written to."""
    shared = Path(os.environ.get("MLOC_REMOTE_CACHE") or root / "inputs")
    try:
        shared.mkdir(parents=True, exist_ok=True)
        if os.access(shared, os.W_OK):
            return shared
    except OSError:
        pass
    messages.say(messages.NOTE, f"{shared} cannot be written to: inputs are not kept on this machine")
    return root / "inputs"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
