"""An empty event database, made once by Dagster's own code and copied for each run."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import dagster

from mloc_dagster.files.atomic import half_file, half_folder, sync_folder


def create_from_template(path: Path) -> None:
    """Make the event database of a run, whole or not at all; leaves one that is there alone."""
    handle, name = half_file(path)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(template(path.parent))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.link(name, path)
    except FileExistsError:
        return
    finally:
        os.unlink(name)


@cache
def template(folder: Path) -> bytes:
    """Return the bytes of an empty event database of this version of Dagster, kept in `folder` for other processes."""
    kept = folder / f"template-{dagster.__version__}.sqlite"
    if not kept.exists():
        _make(kept)
    return kept.read_bytes()


def _make(kept: Path) -> None:
    from dagster._core.storage.event_log import SqliteEventLogStorage

    with half_folder(kept.parent, "template") as aside:
        stock = SqliteEventLogStorage(str(aside))
        with stock.run_connection("empty"):
            pass  # connecting makes the tables; the last one to close writes all of it into the one file
        made = aside / "empty.db"
        with made.open("rb") as file:
            os.fsync(file.fileno())
        made.replace(kept)
    sync_folder(kept.parent)
