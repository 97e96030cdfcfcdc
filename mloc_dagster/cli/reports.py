"""`mloc export` and `mloc report`: what ran, as a table for other programs, and as a page for people."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mloc_dagster.cli.app import app
from mloc_dagster.cli.screen import error_console, fail
from mloc_dagster.cli.usage import Day, day_of

if TYPE_CHECKING:
    from mloc_dagster.usage.records import Row

_FORMS = ("csv", "json", "parquet")
_PAGES = {".html": "html", ".htm": "html", ".md": "markdown"}
Owner = Annotated[str | None, typer.Option("--user", help="Only this owner's.", show_default=False)]
Project = Annotated[str | None, typer.Option(help="Only this project's.", show_default=False)]


@app.command()
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to: .csv, .json or .parquet.")],
    what: Annotated[str, typer.Option("--what", help="tasks, or runs: each attempt at one for itself.")] = "tasks",
    user: Owner = None,
    project: Project = None,
    since: Day = None,
    until: Day = None,
) -> None:
    """Write tasks or runs with their times, causes and usage to a file; times in seconds since the epoch."""
    from mloc_dagster.usage.records import tasks, write

    form = file.suffix.removeprefix(".").lower()
    if form not in _FORMS:
        fail(f"{file}: not a form that is written", "name it .csv, .json or .parquet")
    if what not in ("tasks", "runs"):
        fail(f"--what {what}: nothing to export", "there are tasks and runs")
    rows = _rows(user, project, day_of("--since", since), day_of("--until", until))
    try:
        count = write(tasks(rows) if what == "tasks" else rows, form, file)
    except ImportError:
        fail("parquet needs pyarrow: pip install pyarrow", "or name the file .csv or .json")
    except OSError as error:
        fail(f"{file} cannot be written: {error.strerror}", "name another file")
    error_console.print(f"{count} {what} in {file}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def report(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to: .html or .md.")],
    user: Owner = None,
    project: Project = None,
    since: Day = None,
    until: Day = None,
) -> None:
    """Write a page on success, durations, queue, GPU-hours and failures by cause and executor; 30 days by default.

    The page holds its plots itself and loads nothing.
    """
    from mloc_dagster.usage.report import as_html, as_markdown
    from mloc_dagster.usage.report import report as summed_up

    form = _PAGES.get(file.suffix.lower())
    if form is None:
        fail(f"{file}: not a form that is written", "name it .html or .md")
    last = day_of("--until", until) or datetime.now(UTC).date()
    first = day_of("--since", since) or last - timedelta(days=29)
    title = ", ".join(
        ["MLOC report", *([f"owner {user}"] if user else []), *([f"project {project}"] if project else [])]
    )
    told = summed_up(_rows(user, project, first, last), first, last, title)
    text = as_html(told) if form == "html" else as_markdown(told)
    try:
        file.write_text(text, "utf-8")
    except OSError as error:
        fail(f"{file} cannot be written: {error.strerror}", "name another file")
    error_console.print(f"{told.whole.ended.total()} runs in {file}", highlight=False, markup=False, soft_wrap=True)


def _rows(user: str | None, project: str | None, first: date | None, last: date | None) -> Iterable[Row]:
    from mloc_dagster.cli.home import open_home
    from mloc_dagster.usage.fill import refresh
    from mloc_dagster.usage.records import Wanted, runs
    from mloc_dagster.usage.table import UsageTable

    if first and last and last < first:
        fail(f"--until {last} is before --since {first}", "write the later day as --until")
    instance, _ = open_home()
    table = UsageTable.of_instance(instance)
    refresh(instance, table)
    until = last + timedelta(days=1) if last else None
    return runs(instance, table, Wanted(user, project, _begin(first), _begin(until)))


def _begin(day: date | None) -> float | None:
    return datetime.combine(day, time(), UTC).timestamp() if day else None
