"""Has a process that shows or keeps schedules load them again when a task file is added, changed or removed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from dagster._core.workspace.context import IWorkspaceProcessContext

from mloc_dagster.definitions.added import AddedFiles
from mloc_dagster.definitions.submit import LOCATION
from mloc_dagster.store.home import Home

_LOOK_SECONDS = 1.0
_log = logging.getLogger("mloc")


@contextmanager
def reloaded(context: IWorkspaceProcessContext, home: Home) -> Iterator[None]:
    """Look every second, as long as the block goes on."""
    over = Event()
    thread = Thread(target=_keep, args=(context, AddedFiles(home), over), name="schedules", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_LOOK_SECONDS)  # one that loads just now ends with the process


def _keep(context: IWorkspaceProcessContext, files: AddedFiles, over: Event) -> None:
    known = files.stamp()
    while not over.wait(_LOOK_SECONDS):
        try:
            now = files.stamp()
            if now != known:
                names = context.create_request_context().code_location_names
                for name in [LOCATION] if LOCATION in names else names:
                    context.reload_code_location(name)
                known = now
        except Exception:  # a location that cannot be loaded just now is told by Dagster; the next look tries again
            _log.exception("the schedules could not be loaded again")
