"""`mloc usage`: GPU-hours, core-hours, waits, tokens and cost, by whom and for what; and what budgets say."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from mloc_dagster.cli.app import AsJson, app
from mloc_dagster.cli.screen import as_json, console, error_console, fail, table
from mloc_dagster.spec.base import Json

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from mloc_dagster.store.home import Home

Day = Annotated[str | None, typer.Option(metavar="YYYY-MM-DD", help="A day of UTC.", show_default=False)]


@app.command()
def usage(
    by: Annotated[str, typer.Option(help="owner, project, gpu, day, task or stage.")] = "owner",
    user: Annotated[str | None, typer.Option(help="Only this owner's.", show_default=False)] = None,
    project: Annotated[str | None, typer.Option(help="Only this project's.", show_default=False)] = None,
    since: Day = None,
    until: Day = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Read all runs again first.")] = False,
    json: AsJson = False,
) -> None:
    """Show what runs that are over held of devices and cores, how long they waited, their tokens, and the cost.

    Prices and budgets are in usage.yaml in the home. Both days are included.
    """
    from mloc_dagster.cli.home import open_home
    from mloc_dagster.usage import fill
    from mloc_dagster.usage.settings import settings_of
    from mloc_dagster.usage.stats import Asked, breakdown, stats
    from mloc_dagster.usage.table import By, UsageTable

    if by not in get_args(By):
        fail(f"--by {by}: nothing to break usage down by", f"there are {', '.join(get_args(By))}")
    asked = Asked(user, project, day_of("--since", since), day_of("--until", until))
    if asked.start and asked.end and asked.end < asked.start:
        fail(f"--until {until} is before --since {since}", "write the later day as --until")
    instance, home = open_home()
    settings, entered = settings_of(home), UsageTable.of_instance(instance)
    filled = fill.rebuild(instance, entered) if rebuild else fill.refresh(instance, entered)
    if rebuild:
        told = f"{filled.read} runs were read, {filled.changed} of them gave other figures than before"
        error_console.print(told, highlight=False)
    totals = stats(entered, asked, settings)
    rows = breakdown(entered, asked, settings, by)  # pyright: ignore[reportArgumentType] - checked above
    if json:
        as_json({**totals, "rows": rows})
        return
    console.print(_table(by, rows, settings.currency) if rows else "no run has ended in that time", highlight=False)
    if unpriced := totals["cost"]["unpriced"]:
        error_console.print(f"no price for {', '.join(unpriced)}; see prices.gpu_hour in usage.yaml", style="yellow")


def check_budgets(instance: DagsterInstance, home: Home, owner: str, project: str) -> None:
    """Warn of budgets that are used up, or end the command when one refuses new work."""
    from mloc_dagster.usage.budgets import BudgetExceeded, check
    from mloc_dagster.usage.fill import refresh
    from mloc_dagster.usage.settings import settings_of
    from mloc_dagster.usage.table import UsageTable

    if not settings_of(home).budgets:
        return
    entered = UsageTable.of_instance(instance)
    refresh(instance, entered)
    try:
        for told in check(instance, entered, home, owner, project):
            error_console.print(f"warning: {told}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    except BudgetExceeded as error:
        fail(f"{error}; new work is refused", error.way_out)


def day_of(option: str, text: str | None) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        fail(f"{option} {text}: not a day", "write it as 2026-11-21")


def _table(by: str, rows: list[dict[str, Json]], currency: str):
    shown = table("", by, "GPU-hours", "core-hours", "queue hours", "done", "failed", "cancelled", "tokens", currency)
    for row in rows:
        states = (str(row.get(name, "-")) for name in ("succeeded", "failed", "canceled"))
        waited = f"{row['queue_hours']:.3f}" if "queue_hours" in row else "-"
        tokens = str(row["prompt_tokens"] + row["completion_tokens"])
        held = (f"{row['gpu_hours']:.3f}", f"{row['cpu_hours']:.3f}")
        shown.add_row(str(row[by]).replace("[", r"\["), *held, waited, *states, tokens, f"{row['cost']:.2f}")
    return shown
