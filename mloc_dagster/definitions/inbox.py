"""A folder that is watched: a task file dropped there is run once; a bad one is put aside with its faults.

Each file goes through: claimed (renamed into `.claimed/`), stored as a submitted spec, its run created with a tag that
names this drop, launched, moved to `accepted/`. After a crash the next tick starts where the last one stopped: a
claimed file whose run is going or over is only moved. A worker that finds another one at its run ends at once, so
launching again is safe where it isn't known whether the first launch came through.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

from dagster import (
    DagsterInstance,
    DagsterRunStatus,
    DefaultSensorStatus,
    RunsFilter,
    SensorEvaluationContext,
    SkipReason,
    sensor,
)

from mloc_dagster.definitions.launcher import WORKER
from mloc_dagster.definitions.submit import create_run, store_spec
from mloc_dagster.files.atomic import held, write_text
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import SpecError, TaskFile, load_file
from mloc_dagster.store.home import Home
from mloc_dagster.usage.budgets import BudgetExceeded, refuse_beyond

DROP = "mloc/inbox"
"""Run tag: the drop that a run came from."""

_QUIET_SECONDS = 1.0
_WAITING = (DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTING)
_SUFFIXES = (".yaml", ".yml")


@sensor(
    name="inbox",
    minimum_interval_seconds=2,
    default_status=DefaultSensorStatus.RUNNING,
    description="Runs task files dropped into the inbox.",
)
def inbox_sensor(context: SensorEvaluationContext) -> SkipReason:
    """Take what lies in the inbox; the runs are created here, since their jobs are newer than the loaded location."""
    home = Home.current()
    told = list(take(context.instance, home))
    for line in told:
        context.log.info(line)
    return SkipReason("; ".join(told) or f"nothing new in {home.inbox}")


def take(instance: DagsterInstance, home: Home) -> Iterator[str]:
    """Run each file of the inbox that has been quiet for a second; yields a line on each."""
    if not home.inbox.is_dir():
        return
    claimed = home.inbox / ".claimed"
    claimed.mkdir(exist_ok=True)
    with held(home.inbox / ".lock") as alone:
        if not alone:
            return
        for path in sorted(home.inbox.iterdir()):
            if path.suffix in _SUFFIXES and not path.name.startswith(".") and path.is_file() and _quiet(path):
                stat = path.stat()
                path.rename(claimed / f"{stat.st_mtime_ns}-{stat.st_ino}--{path.name}")
        for path in sorted(claimed.iterdir()):
            try:
                yield _handle(instance, home, path)
            except Exception as error:  # one drop must not stop the others; it stays claimed and is tried again
                yield f"not yet {_name(path)}: {type(error).__name__}: {error}"


def _quiet(path: Path) -> bool:
    """Whether the file was left alone for a second; the change time, since a copy may keep the time of its original."""
    return abs(time.time() - path.stat().st_ctime) >= _QUIET_SECONDS


def _handle(instance: DagsterInstance, home: Home, path: Path) -> str:
    name = _name(path)
    try:
        task = load_file(path)
    except SpecError as error:
        report = "\n".join(str(fault.in_file(name)) for fault in error.faults)
        return _rejected(home, path, report, f"{len(error.faults)} fault(s)")
    try:
        refuse_beyond(instance, task.owner, task.project)
    except BudgetExceeded as error:
        return _rejected(home, path, f"{error}; new work is refused; {error.way_out}", "a budget")
    run_id = _run(instance, home, task, path)
    path.rename(_free(home.inbox / "accepted" / name, path))
    return f"accepted {name}: run {run_id}"


def _rejected(home: Home, path: Path, report: str, short: str) -> str:
    """Put a drop aside with what is to be said of it."""
    name = _name(path)
    target = _free(home.inbox / "rejected" / name, path)
    write_text(target.with_name(f"{target.name}.errors.txt"), report + "\n")
    path.rename(target)
    return f"rejected {name}: {short}"


def _run(instance: DagsterInstance, home: Home, task: TaskFile, path: Path) -> str:
    drop = hashlib.sha256(f"{path.name}\0{task.digest}".encode()).hexdigest()[:32]
    known = instance.get_runs(RunsFilter(tags={DROP: drop}))
    if known:
        run = known[-1]  # the first; later ones are re-executions, which keep their parent's tags
    else:
        job_name = store_spec(home, task, base=home.inbox)
        run = create_run(instance, compile_plan(task), job_name, fresh=False, tags={DROP: drop})
    if run.status in _WAITING and not run.tags.get(WORKER):
        instance.launch_run(run.run_id, None)  # pyright: ignore[reportArgumentType] - our launcher needs no workspace
    return run.run_id


def _name(claimed: Path) -> str:
    return claimed.name.partition("--")[2]


def _free(target: Path, claimed: Path) -> Path:
    """Return the target, or when it is taken one that says which drop it was."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        return target
    return target.with_name(f"{target.stem}-{claimed.name.partition('--')[0]}{target.suffix}")
