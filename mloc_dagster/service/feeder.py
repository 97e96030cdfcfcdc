"""Makes Dagster runs of what lies in the intake: `python -m mloc_dagster.service.feeder LANE`, until its input ends.

A line on standard input says that something came. The order: claim, store the task file, create the run under the id
that the client was told, hand it to the run coordinator, forget the task. A feeder that is killed anywhere in between
begins again with what it had claimed: a run that is there already is not made twice.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dagster import DagsterInstance, DagsterRunStatus
from dagster_shared.error import DagsterError

from mloc_dagster.definitions.instance import hold_connections, open_instance
from mloc_dagster.definitions.submit import create_run, store_spec
from mloc_dagster.plan import compile_plan
from mloc_dagster.service.intake import Accepted, Intake
from mloc_dagster.spec import SpecError, load_text
from mloc_dagster.store.home import Home
from mloc_dagster.telemetry import logs

_AT_ONCE = 10
"""So many tasks are claimed together: a claim waits for the disk."""
_LOOK_SECONDS = 1.0
_PATIENCE_SECONDS = 600.0
_failing: dict[str, float] = {}
"""Since when a task cannot be made a run of, by the clock of this process."""
_log = logging.getLogger("mloc")


def main(lane: int) -> None:
    """Feed one lane until standard input ends; waits while another process feeds it."""
    logs.configure("feeder")
    os.nice(2)  # answers to clients go first
    home = Home.current()
    with open_instance(home) as instance:
        hold_connections(instance)
        with _only_one(Path(instance.root_directory) / f"intake-{lane}.lock") as alone:
            intake = Intake.of_instance(instance)
            while alone:
                try:
                    found = feed(instance, home, intake, lane)
                except Exception:
                    _log.exception("lane %d of the intake: not fed just now", lane)
                    found = 0
                if not _goes_on(0.0 if found else _LOOK_SECONDS):
                    return


def feed(instance: DagsterInstance, home: Home, intake: Intake, lane: int) -> int:
    """Make runs of the first tasks of a lane; returns how many need no further look."""
    found = intake.claim(lane, _AT_ONCE)
    done = []
    try:
        for task in found:
            try:
                with logs.about(run_id=task.run_id, task_id=task.run_id):
                    _submit(instance, home, task)
                    _log.info("queued %s", task.task)
            except (SpecError, DagsterError) as error:
                _refuse(instance, intake, task, str(error))
            except Exception as error:  # the disk, the database: tried again, but not for ever
                since = _failing.setdefault(task.run_id, time.monotonic())
                if time.monotonic() - since < _PATIENCE_SECONDS:
                    _log.warning(
                        "no run of task %s just now: %s: %s", task.run_id, type(error).__name__, error,
                        extra={"run_id": task.run_id, "task_id": task.run_id},
                    )  # fmt: skip
                    continue
                _refuse(instance, intake, task, f"{type(error).__name__}: {error}")
            _failing.pop(task.run_id, None)
            done.append(task.run_id)
    finally:
        if done:
            intake.done(done)
    return len(done)


def _refuse(instance: DagsterInstance, intake: Intake, task: Accepted, error: str) -> None:
    """Note why there is no run of a task; one that is there already fails, so that it can be replayed."""
    intake.refuse(task.run_id, error)
    run = instance.get_run_by_id(task.run_id)
    if run is not None and run.status is DagsterRunStatus.NOT_STARTED:
        instance.report_run_failed(run, message=f"it could not be submitted: {error}")


def _submit(instance: DagsterInstance, home: Home, task: Accepted) -> None:
    begun = task.state == "feeding"  # by a feeder that was killed
    known = instance.get_run_by_id(task.run_id) if begun else None
    if known is None:
        loaded = load_text(task.text, name=task.name, base=task.base)
        job = store_spec(home, loaded, base=task.base)
        known = create_run(
            instance, compile_plan(loaded), job, fresh=task.fresh, tags=dict(task.tags), run_id=task.run_id
        )
    if known.status is DagsterRunStatus.NOT_STARTED:
        instance.submit_run(known.run_id, None)  # pyright: ignore[reportArgumentType] - our launcher needs no workspace


def _goes_on(seconds: float) -> bool:
    """Wait for a line; returns False at the end of standard input: the web server is gone."""
    heard, _, _ = select.select([sys.stdin], [], [], seconds)
    return not heard or bool(os.read(sys.stdin.fileno(), 65_536))


@contextmanager
def _only_one(lock: Path) -> Iterator[bool]:
    """Hold a lane; gives False when standard input ends before it is free."""
    with lock.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not _goes_on(_LOOK_SECONDS):
                    yield False
                    return
        yield True


if __name__ == "__main__":
    main(int(sys.argv[1]))
