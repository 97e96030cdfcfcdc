"""`mloc schedule`: task files that run by themselves: at their times, and when what they wait for comes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from mloc_dagster.cli.app import AsJson, TaskPath, app
from mloc_dagster.cli.screen import as_json, console, error_console, fail, table, warn
from mloc_dagster.spec.base import Json

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from mloc_dagster.definitions.added import Added, AddedFiles
    from mloc_dagster.spec import TaskFile

_schedule = typer.Typer(help="Have task files run by themselves: add, list, pause, resume and remove them.")
app.add_typer(_schedule, name="schedule", no_args_is_help=True)
TaskName = Annotated[str, typer.Argument(metavar="TASK", help="A task's name; see: mloc schedule list.")]


@_schedule.command()
def add(file: TaskPath, json: AsJson = False) -> None:
    """Add a task file with a schedule or triggers, in place of one of the same name; the daemon (mloc up) runs it."""
    from dagster._core.scheduler.instigation import InstigatorStatus

    from mloc_dagster.definitions.added import NotAdded
    from mloc_dagster.definitions.schedules import set_states
    from mloc_dagster.plan import compile_plan
    from mloc_dagster.spec import SpecError, load_file
    from mloc_dagster.spec.schedule_checks import SECTIONS

    try:
        task = load_file(file)
        compile_plan(task)
    except SpecError as error:
        fail("\n".join(map(str, error.faults)))
    if task.schedule is None and task.triggers is None:
        fail(
            f"{file} has neither schedule nor triggers",
            "add schedule: {cron: 0 3 * * *}, or start it once: mloc submit",
        )
    warn(warning for warning in task.warnings if warning.path.removeprefix("spec.") not in SECTIONS)
    instance, files = _open()
    before = files.get(task.name)
    try:
        added = files.add(task)
    except NotAdded as error:
        fail(str(error), "rename one of them, or remove the other: mloc schedule remove TASK")
    _unknown_assets(instance, task)
    if before is None:
        set_states(instance, added, task, InstigatorStatus.RUNNING)
    else:
        _complete(instance, added, task)
    if json:
        as_json(_row(instance, added))
    else:
        console.print(f"{task.name} was {'added' if before is None else 'replaced'}; {_told(task)}", highlight=False)


@_schedule.command("list")
def list_added(json: AsJson = False) -> None:
    """List what runs by itself: when next, and what came of the last time."""
    instance, files = _open()
    rows = [_row(instance, added) for added in files]
    if json:
        as_json(rows)
        return
    shown = table("", "task", "kind", "when", "state", "next", "last", "told")
    for row in rows:
        for part in row["parts"]:
            last = part["last"] or {}
            cells = (
                row["task"],
                part["kind"],
                part["when"],
                part["state"],
                _moment(part["next"]),
                _moment(last.get("at")),
            )
            shown.add_row(*(str(cell).replace("[", r"\[") for cell in (*cells, last.get("told", "-"))))
        if row["fault"]:
            shown.add_row(row["task"], "-", "-", "left out", "-", "-", row["fault"].replace("[", r"\["))
    console.print(shown if rows else "nothing runs by itself; add a file: mloc schedule add FILE", highlight=False)


@_schedule.command()
def pause(task: TaskName) -> None:
    """Have a task run no more by itself, until it is resumed; what passes meanwhile is not made up for."""
    _set(task, "STOPPED")


@_schedule.command()
def resume(task: TaskName) -> None:
    """Have a paused task run by itself again."""
    _set(task, "RUNNING")


@_schedule.command()
def remove(task: TaskName) -> None:
    """Forget a task's schedule and triggers; its runs stay."""
    from mloc_dagster.definitions.schedules import forget_states

    instance, files = _open()
    added = _found(files, task)
    files.remove(task)
    forget_states(instance, added)
    console.print(f"{task} was removed", highlight=False, markup=False)


def _open() -> tuple[DagsterInstance, AddedFiles]:
    from mloc_dagster.cli.home import open_home
    from mloc_dagster.definitions.added import AddedFiles

    instance, home = open_home()
    return instance, AddedFiles(home)


def _found(files: AddedFiles, task: str) -> Added:
    from mloc_dagster.spec.faults import nearest

    added = files.get(task)
    if added is not None:
        return added
    names = [one.task for one in files]
    guess = nearest(task, names)
    way_out = f"did you mean {guess}?" if guess else f"there are: {', '.join(names)}" if names else "none was added yet"
    fail(f"{task!r} does not run by itself", way_out)


def _set(name: str, status: str) -> None:
    from dagster._core.scheduler.instigation import InstigatorStatus

    from mloc_dagster.definitions.schedules import set_states
    from mloc_dagster.spec import SpecError

    instance, files = _open()
    added = _found(files, name)
    try:
        set_states(instance, added, added.load(), InstigatorStatus(status))
    except SpecError as error:
        fail(str(error), f"mend the file and add it again, or: mloc schedule remove {name}")
    console.print(f"{name} is {'paused' if status == 'STOPPED' else 'on'}", highlight=False, markup=False)


def _complete(instance: DagsterInstance, added: Added, task: TaskFile) -> None:
    """A file that was replaced stays paused if it was; what is new in it gets the state of what was there."""
    from dagster._core.scheduler.instigation import InstigatorStatus

    from mloc_dagster.definitions.schedules import is_paused, set_states

    set_states(
        instance, added, task, InstigatorStatus.STOPPED if is_paused(instance, added) else InstigatorStatus.RUNNING
    )


def _unknown_assets(instance: DagsterInstance, task: TaskFile) -> None:
    from dagster import AssetKey

    for name in task.triggers.asset_updated if task.triggers else ():
        if not instance.has_asset_key(AssetKey(name.split("/"))):
            told = f"warning: there is no result of {name} yet; check the name unless it is to come"
            error_console.print(told, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _row(instance: DagsterInstance, added: Added) -> Json:
    from mloc_dagster.definitions.schedules import last_tick, next_tick, states_of
    from mloc_dagster.spec import SpecError

    row: dict[str, Json] = {"task": added.task, "job": added.job, "added_at": added.added_at, "fault": "", "parts": []}
    try:
        task = added.load()
    except SpecError as error:
        return {**row, "fault": str(error).splitlines()[0]}
    for kind, state in states_of(instance, added, task).items():
        following = next_tick(task) if kind == "schedule" and state == "RUNNING" else None
        when = _when(task, kind)
        last = last_tick(instance, added, kind)
        row["parts"].append({"kind": kind, "when": when, "state": state, "next": following, "last": last})
    return row


def _when(task: TaskFile, kind: str) -> str:
    if kind == "schedule":
        assert task.schedule is not None
        return f"{task.schedule.cron} ({task.schedule.timezone})"
    assert task.triggers is not None
    return ", ".join(filter(None, (task.triggers.inbox, task.triggers.s3_prefix, *task.triggers.asset_updated)))


def _told(task: TaskFile) -> str:
    from mloc_dagster.definitions.schedules import next_tick

    following = next_tick(task)
    return f"it runs next at {_moment(following)}" if following else "it runs when something comes"


def _moment(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"
