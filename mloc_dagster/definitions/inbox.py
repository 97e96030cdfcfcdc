"""A folder that is watched: a task file dropped there is run once; a bad one is put aside with its faults.

Each file goes through: claimed (renamed into `.claimed/`), stored as a submitted spec, its run created with a tag that
names this drop, moved to `accepted/`. After a crash the next tick starts where the last one stopped: a claimed file
whose run exists already is only moved.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

from dagster import DagsterInstance, DefaultSensorStatus, RunsFilter, SensorEvaluationContext, SkipReason, sensor

from mloc_dagster.definitions.submit import create_run, store_spec
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import SpecError, TaskFile, load_file
from mloc_dagster.store.atomic import write_text
from mloc_dagster.store.home import Home

DROP = "mloc/inbox"
"""Run tag: the drop that a run came from."""

_QUIET_SECONDS = 1.0
_SUFFIXES = (".yaml", ".yml")


@sensor(name="inbox", minimum_interval_seconds=2, default_status=DefaultSensorStatus.RUNNING, description="Runs task files dropped into the inbox.")
def inbox_sensor(context: SensorEvaluationContext) -> SkipReason:
    """Take what lies in the inbox; the runs are created here, since their jobs are newer than the loaded location."""
    home = Home.current()
    told = list(take(context.instance, home))
    for line in told:
        context.log.info(line)
    return SkipReason("; ".join(told) or f"nothing new in {home.inbox}")


def take(instance: DagsterInstance, home: Home) -> Iterator[str]:
    """Run each file of the inbox that has been quiet for a second; yields a line on each."""
    claimed = home.inbox / ".claimed"
    for path in sorted(home.inbox.glob("*")) if home.inbox.is_dir() else ():
        if path.suffix in _SUFFIXES and path.is_file() and time.time() - path.stat().st_mtime >= _QUIET_SECONDS:
            claimed.mkdir(exist_ok=True)
            stat = path.stat()
            path.rename(claimed / f"{stat.st_mtime_ns}-{stat.st_ino}--{path.name}")
    for path in sorted(claimed.glob("*")) if claimed.is_dir() else ():
        yield _handle(instance, home, path)


def _handle(instance: DagsterInstance, home: Home, path: Path) -> str:
    name = path.name.partition("--")[2]
    try:
        task = load_file(path)
    except SpecError as error:
        report = "\n".join(str(fault.in_file(name)) for fault in error.faults)
        write_text(home.inbox / "rejected" / f"{path.name.partition('--')[2]}.errors.txt", report + "\n")
        _move(path, home.inbox / "rejected" / name)
        return f"rejected {name}: {len(error.faults)} fault(s)"
    run_id = _run(instance, home, task, path)
    _move(path, home.inbox / "accepted" / name)
    return f"accepted {name}: run {run_id}"


def _run(instance: DagsterInstance, home: Home, task: TaskFile, path: Path) -> str:
    drop = hashlib.sha256(f"{path.name}\0{task.digest}".encode()).hexdigest()[:32]
    known = instance.get_runs(RunsFilter(tags={DROP: drop}), limit=1)
    if known and known[0].status.value != "NOT_STARTED":
        return known[0].run_id
    plan = compile_plan(task)
    run = known[0] if known else create_run(instance, plan, store_spec(home, task, base=home.inbox), fresh=False, tags={DROP: drop})
    instance.launch_run(run.run_id, None)  # pyright: ignore[reportArgumentType] - our launcher needs no workspace
    return run.run_id


def _move(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target = target.with_name(f"{target.stem}-{path.name.partition('--')[0]}{target.suffix}")
    path.rename(target)
