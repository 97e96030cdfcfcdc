"""Commands on runs: run, submit, list, show, logs, cancel."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from mloc_dagster.cli.app import AsJson, Fresh, OnCpu, TaskPath, app, check_on
from mloc_dagster.cli.screen import as_json, console, error_console, fail, table, warn

if TYPE_CHECKING:
    from dagster import DagsterInstance, DagsterRun
    from dagster._core.storage.dagster_run import RunRecord

    from mloc_dagster.plan import Plan
    from mloc_dagster.store.home import Home

RunId = Annotated[
    str, typer.Argument(metavar="TASK", help="A task's id (its first letters are enough) or its name (the latest run).")
]
_ACCEPTED = "ACCEPTED"
"""Of a task that came over HTTP and is no run yet."""
_COLOURS = {"SUCCESS": "green", "FAILURE": "red", "CANCELED": "yellow", "CANCELING": "yellow", "STARTED": "cyan"}


@app.command()
def run(file: TaskPath, json: AsJson = False, on: OnCpu = None, fresh: Fresh = False) -> None:
    """Run a task file and wait: progress of each step, then the results. Ctrl-C cancels it.

    Exit code 0: success; 1: the task failed; 2: the file or a request was wrong; 130: cancelled.
    """
    from mloc_dagster.cli.follow import follow
    from mloc_dagster.cli.summary import summary

    instance, home, run_id, plan = _submit(file, on, fresh, quiet=json)
    run_id, status = follow(instance, home, run_id, plan, quiet=json)
    report = summary(instance, home, run_id)
    if json:
        as_json(report.as_dict())
    else:
        report.show(console)
    raise typer.Exit({"SUCCESS": 0, "CANCELED": 130}.get(status, 1))


@app.command()
def submit(
    file: TaskPath,
    json: AsJson = False,
    on: OnCpu = None,
    fresh: Fresh = False,
    priority: Annotated[int, typer.Option(help="Runs of higher priority begin first; see: mloc queue.")] = 0,
) -> None:
    """Start a task file and return at once; the run goes on without this terminal."""
    _, _, run_id, plan = _submit(file, on, fresh, quiet=json, priority=priority)
    if json:
        as_json({"task_id": run_id, "task": plan.task.name})
    else:
        console.print(f"{run_id}\nfollow it with: mloc logs -f {run_id[:8]}", highlight=False)


@app.command("list")
def list_runs(
    json: AsJson = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many runs, newest first.")] = 20,
    status: Annotated[
        str | None, typer.Option(help="Only runs in this state, such as FAILURE.", show_default=False)
    ] = None,
) -> None:
    """List runs, newest first."""
    from dagster import DagsterRunStatus, RunsFilter

    from mloc_dagster.spec.faults import nearest

    instance, _ = open_runs()
    states = [_ACCEPTED, *(state.value for state in DagsterRunStatus)]
    if status and status.upper() not in states:
        guess = nearest(status.upper(), states)
        fail(
            f"{status!r} is not a state of a run", f"did you mean {guess}?" if guess else f"states: {', '.join(states)}"
        )
    wanted = status.upper() if status else None
    rows = _accepted(instance, limit) if wanted in (None, _ACCEPTED) else []
    if wanted != _ACCEPTED and len(rows) < limit:
        chosen = RunsFilter(statuses=[DagsterRunStatus(wanted)]) if wanted else None
        rows += [_row(record) for record in instance.get_run_records(chosen, limit=limit - len(rows))]
    if json:
        as_json(rows)
        return
    shown = table("", "id", "task", "owner", "state", "started", "seconds", "why")
    for row in rows:
        colour = _COLOURS.get(str(row["status"]), "white")
        seconds = f"{row['seconds']:.1f}" if row["seconds"] is not None else "-"
        shown.add_row(
            str(row["task_id"])[:8],
            str(row["task"]),
            str(row["owner"]),
            f"[{colour}]{row['status']}[/]",
            str(row["started"] or "-"),
            seconds,
            str(row["cause"] or ""),
        )
    console.print(shown if rows else "no runs yet; start one with: mloc run FILE")


@app.command()
def show(task: RunId, json: AsJson = False) -> None:
    """Show one task: its steps, results, files and, when it failed, why."""
    from mloc_dagster.cli.summary import summary

    instance, home = open_runs()
    report = summary(instance, home, find_run(instance, task).run_id)
    if json:
        as_json(report.as_dict())
    else:
        report.show(console)


@app.command()
def logs(
    task: RunId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
) -> None:
    """Print what a task's steps wrote."""
    instance, home = open_runs()
    from mloc_dagster.definitions.logs import TaskLog
    from mloc_dagster.definitions.lost import end_if_lost

    found = find_run(instance, task)
    log = TaskLog(instance, home, found.run_id)
    while True:
        current = instance.get_run_by_id(found.run_id)
        ended = current is None or current.is_finished or end_if_lost(instance, current)
        for line in log.new(last=ended or not follow):
            console.print(Text(line), soft_wrap=True)
        if ended or not follow:
            return
        time.sleep(0.3)


@app.command()
def cancel(task: RunId) -> None:
    """Cancel a task; its processes are ended, and what they had stored is continued by the next run."""
    instance, _ = open_runs()
    found = find_run(instance, task)
    if found.is_finished:
        fail(f"{found.run_id[:8]} is {found.status.value} already", "there is nothing to cancel")
    if not instance.run_coordinator.cancel_run(found.run_id):
        fail(f"{found.run_id[:8]} could not be cancelled", f"see: mloc show {found.run_id[:8]}", code=1)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        current = instance.get_run_by_id(found.run_id)
        if current is None or current.is_finished:
            console.print(f"{found.run_id[:8]} is {current.status.value if current else 'gone'}", highlight=False)
            return
        time.sleep(0.1)
    error_console.print(f"{found.run_id[:8]} is still ending; see: mloc show {found.run_id[:8]}", highlight=False)


def _submit(
    file: Path, on: str | None, fresh: bool, quiet: bool, priority: int = 0
) -> tuple[DagsterInstance, Home, str, Plan]:
    from mloc_dagster.plan import compile_plan
    from mloc_dagster.spec import load_file

    check_on(on)
    task = load_file(file)
    if not quiet:
        warn(task.warnings)
    compiled = compile_plan(task)
    instance, home = open_runs()
    from mloc_dagster.cli.usage import check_budgets
    from mloc_dagster.definitions.submit import submit_file
    from mloc_dagster.telemetry.traceparent import TAG, VARIABLE, valid

    check_budgets(instance, home, task.owner, task.project)
    tags = {"dagster/priority": str(priority)} if priority else {}
    if span := valid(os.environ.get(VARIABLE)):
        tags[TAG] = span
    return instance, home, submit_file(instance, home, compiled, fresh=fresh, tags=tags), compiled


def open_runs() -> tuple[DagsterInstance, Home]:
    """Open the home, and end runs whose worker is gone."""
    from mloc_dagster.cli.home import open_home
    from mloc_dagster.definitions.lost import end_lost

    instance, home = open_home()
    end_lost(instance)
    return instance, home


def find_run(instance: DagsterInstance, task: str) -> DagsterRun:
    """Return the run that an id, its first letters or a task's name mean; ends the command when there is none."""
    from dagster import RunsFilter

    exact = instance.get_run_by_id(task) if len(task) == 36 else None
    if exact:
        return exact
    named = instance.get_runs(RunsFilter(tags={"mloc/task": task}), limit=1)
    if named:
        return named[0]
    recent = [found for found in instance.get_runs(limit=1000) if task and found.run_id.startswith(task)]
    if len(recent) == 1:
        return recent[0]
    if recent:
        fail(
            f"{task!r} means {len(recent)} runs",
            "write more letters: " + ", ".join(found.run_id[:12] for found in recent[:5]),
        )
    fail(f"there is no task {task!r} here", "see: mloc list")


def _accepted(instance: DagsterInstance, limit: int) -> list[dict[str, str | float | None]]:
    """Tasks that came over HTTP and are no runs yet, newest first."""
    from dagster import RunsFilter

    from mloc_dagster.service.intake import Intake

    found = Intake.of_instance(instance).list(("waiting", "feeding"), None, None, limit)
    there = set(instance.get_run_ids(RunsFilter(run_ids=[one.run_id for one in found]))) if found else set()
    empty = {"started": None, "seconds": None, "cause": None, "replay_of": None}
    return [
        {"task_id": one.run_id, "task": one.task, "owner": one.owner, "status": _ACCEPTED, **empty}
        for one in found
        if one.run_id not in there
    ]


def _row(record: RunRecord) -> dict[str, str | float | None]:
    from mloc_dagster.placement.failures.letters import cause_of

    found, begun = record.dagster_run, record.start_time
    ended = record.end_time or (time.time() if begun and not found.is_finished else None)
    return {
        "task_id": found.run_id,
        "task": found.tags.get("mloc/task") or found.job_name,
        "owner": found.tags.get("mloc/owner") or "-",
        "status": found.status.value,
        "started": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(begun)) if begun else None,
        "seconds": ended - begun if begun and ended else None,
        "cause": cause_of(found),
        "replay_of": found.tags.get("mloc/replay_of"),
    }
