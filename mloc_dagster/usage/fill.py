"""Brings the usage tables in step with Dagster's storage; whoever does it, and however often, the sums are the same."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from dagster import DagsterInstance
from sqlalchemy.exc import DataError

from mloc_dagster.usage import history
from mloc_dagster.usage.entries import Ended
from mloc_dagster.usage.table import UsageTable

_log = logging.getLogger("mloc")
_LOOK_SECONDS = 2.0
_AT_ONCE_SECONDS = 5.0
_OVERLAP_SECONDS = 300.0
"""A change may be seen so much later than the time that it bears: its transaction was still going on."""
_WIDE_SECONDS, _WIDE_EVERY_SECONDS = 2 * 86_400.0, 600.0
"""The time that a change bears is that of the machine which made it: now and then it is looked for further back."""


@dataclass(frozen=True)
class Filled:
    """How many runs were read, and how many gave other sums than before."""

    read: int
    changed: int


def refresh(
    instance: DagsterInstance, table: UsageTable, seconds: float | None = None, overlap: float = _OVERLAP_SECONDS
) -> Filled:
    """Enter runs that ended or changed since the last time; stops after `seconds`, and the next call goes on.

    `overlap`: so many seconds before that are looked through again. A clock that is ahead leads nobody past now.
    """
    until = None if seconds is None else time.monotonic() + seconds
    if table.lacks_sums():
        table.sum_up()
    since = history.back(min(table.latest(), time.time()), overlap)
    return _fill(instance, table, since, until, everything=False)


@contextmanager
def kept_in_step(instance: DagsterInstance, table: UsageTable) -> Iterator[None]:
    """Enter what ended, every few seconds, as long as the block goes on."""
    over = threading.Event()

    def keep() -> None:
        wide = time.monotonic()
        while not over.wait(_LOOK_SECONDS):
            try:
                if time.monotonic() >= wide:
                    refresh(instance, table, _AT_ONCE_SECONDS, _WIDE_SECONDS)
                    wide = time.monotonic() + _WIDE_EVERY_SECONDS
                else:
                    refresh(instance, table, _AT_ONCE_SECONDS)
            except Exception:  # the database, just now: the next look goes on
                _log.exception("usage could not be brought up to date")

    thread = threading.Thread(target=keep, name="usage", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def rebuild(instance: DagsterInstance, table: UsageTable) -> Filled:
    """Enter all runs of the storage again, and sum up anew. Runs that the storage has forgotten stay as they were."""
    filled = _fill(instance, table, history.back(0.0, 0.0), None, everything=True)
    table.sum_up()
    return filled


def _fill(instance: DagsterInstance, table: UsageTable, since: float, until: float | None, everything: bool) -> Filled:
    read = changed = 0
    for page in history.changed(instance, since):
        wanted = page if everything else table.unknown(page)
        runs = history.read(instance, wanted) if wanted else []
        changed += _entered(table, runs)
        read += len(runs)
        if runs and until is not None and time.monotonic() > until:
            break
    return Filled(read, changed)


def _entered(table: UsageTable, runs: Sequence[Ended]) -> int:
    """Enter runs; when the database cannot hold one of them, that one goes in without what it held."""
    try:
        return table.enter(runs)
    except (DataError, OverflowError):
        if len(runs) > 1:
            return sum(_entered(table, [run]) for run in runs)
        _log.exception("run %s counts without what it held", runs[0].run_id)
        return table.enter([history.bare(run) for run in runs])
