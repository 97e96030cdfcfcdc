"""Commands on runs: run, submit, list, show, logs, cancel."""

from __future__ import annotations

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
    states = [state.value for state in DagsterRunStatus]
    if status and status.upper() not in states:
        guess = nearest(status.upper(), states)
        fail(
            f"{status!r} is not a state of a run", f"did you mean {guess}?" if guess else f"states: {', '.join(states)}"
        )
    chosen = RunsFilter(statuses=[DagsterRunStatus(status.upper())]) if status else None
    records = instance.get_run_records(chosen, limit=limit)
    if json:
        as_json([_row(record) for record in records])
        return
    shown = table("", "id", "task", "owner", "state", "started", "seconds", "why")
    for record in records:
        row = _row(record)
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
    console.print(shown if records else "no runs yet; start one with: mloc run FILE")


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
    from mloc_dagster.definitions.lost import end_if_lost

    found = find_run(instance, task)
    seen: dict[Path, int] = {}
    cursor: str | None = None
    while True:
        current = instance.get_run_by_id(found.run_id)
        ended = current is None or current.is_finished or end_if_lost(instance, current)
        cursor = _print_events(instance, found.run_id, cursor)
        _print_new(home, found.run_id, seen)
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
    from mloc_dagster.definitions.submit import submit_file

    tags = {"dagster/priority": str(priority)} if priority else None
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


def _print_events(instance: DagsterInstance, run_id: str, cursor: str | None) -> str | None:
    connection = instance.get_records_for_run(run_id, cursor=cursor)
    for record in connection.records:
        entry = record.event_log_entry
        step = f"{entry.step_key} " if entry.step_key else ""
        moment = time.strftime("%H:%M:%S", time.localtime(entry.timestamp))
        kind = f"{entry.dagster_event_type.value} " if entry.dagster_event_type else ""
        console.print(Text(f"{moment} {kind}{step}{entry.user_message}"), soft_wrap=True)
    return connection.cursor


def _print_new(home: Home, run_id: str, seen: dict[Path, int]) -> None:
    """Print what the steps' own logs gained; a stage that moved to its run folder is not printed twice."""
    for stage, path in _stage_logs(home, run_id):
        key = Path(stage)
        start = seen.get(key, 0)
        with path.open("rb") as file:
            file.seek(start)
            block = file.read()
        seen[key] = start + len(block)
        for line in block.decode("utf-8", "replace").splitlines():
            console.print(Text(f"{stage} | {line}"), soft_wrap=True)


def _stage_logs(home: Home, run_id: str) -> list[tuple[str, Path]]:
    import json

    found = {path.parts[-3]: path for path in home.results.glob(f"{run_id}/*/logs/stdout.log")}
    for job in home.work.glob("*/job.json"):
        try:
            task_id, _, stage = str(json.loads(job.read_text("utf-8"))["task_id"]).partition("/")
        except (OSError, ValueError, KeyError):
            continue
        log = job.parent / "logs" / "stdout.log"
        if task_id == run_id and log.exists():
            found.setdefault(stage, log)
    return sorted(found.items())
