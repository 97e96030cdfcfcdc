"""Work on other machines is held while somebody watches it; what nobody watches any more is given up, and ends.

Who holds it stands in the artifact store, where each attempt looks (`executors.remote.fence`). Beside it the work
folder of this machine notes that something may go on elsewhere, so that a watcher that was killed is not missed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from executors.remote import fence
from executors.remote.store import Store, StoreError
from mloc_dagster.files.atomic import held, write_text
from mloc_dagster.placement.retention.work import lock_of
from mloc_dagster.store.home import Home

_NOTE = Path(".cache") / "elsewhere.json"
_log = logging.getLogger("mloc")


class Elsewhere(BaseModel):
    """What may go on elsewhere for a run; `identity` names the work in the store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str
    identity: str
    run_id: str


def hold(store: Store, folder: Path, work: Elsewhere, attempt: str, worker: str) -> None:
    """Give work to an attempt on a worker; raises StoreError."""
    write_text(folder / _NOTE, work.model_dump_json())
    fence.hold(store, work.identity, attempt, worker)


def give_up(store: Store, folder: Path, work: Elsewhere) -> None:
    """Let nobody hold work: its attempts have ended, or are to end. Without the store, `give_up_unwatched` does it."""
    with suppress(StoreError):
        fence.release(store, work.identity)
        (folder / _NOTE).unlink(missing_ok=True)


def give_up_unwatched(home: Home, is_over: Callable[[str], bool]) -> int:
    """Give up what goes on for runs that are over; returns how many pieces of work that were.

    `is_over` is asked with the id of a run: whether nobody will go on from there.
    """
    count = 0
    for note in home.work.glob(f"*/{_NOTE}"):
        folder = note.parent.parent
        with held(lock_of(home, folder.name)) as free:
            work = _read(note) if free else None
            if work is None or not is_over(work.run_id):
                continue
            try:
                give_up(Store(work.store), folder, work)
            except StoreError as error:
                _log.warning("work of run %s may go on elsewhere: %s", work.run_id, error)
                continue
            count += not note.exists()
    return count


def _read(note: Path) -> Elsewhere | None:
    try:
        return Elsewhere.model_validate_json(note.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValidationError:  # of another version
        note.unlink(missing_ok=True)
        return None
