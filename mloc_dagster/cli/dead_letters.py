"""`mloc dead-letters` and `mloc replay`: what failed for good, and how it is done again."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from mloc_dagster.cli.app import AsJson, app
from mloc_dagster.cli.runs import find_run, open_runs
from mloc_dagster.cli.screen import as_json, console, error_console, fail, table

if TYPE_CHECKING:
    from mloc_dagster.placement.failures.cause import Cause

_SHORT = 100
OfCause = Annotated[
    str | None, typer.Option("--cause", help="Only those with this cause, such as worker_lost.", show_default=False)
]


@app.command("dead-letters")
def dead_letters(
    json: AsJson = False,
    cause: OfCause = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, newest first.")] = 20,
) -> None:
    """List tasks that failed for good: all attempts are used up, and nobody has done them again since."""
    from mloc_dagster.placement.failures import letters

    chosen = _cause(cause)
    instance, _ = open_runs()
    found = letters.dead_letters(instance, limit, chosen)
    if json:
        as_json([asdict(letter) for letter in found])
        return
    shown = table("", "id", "task", "stage", "cause", "failed", "attempts", "reason")
    for letter in found:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(letter.failed_at))
        reason = letter.reason if len(letter.reason) <= _SHORT else f"{letter.reason[: _SHORT - 1]}…"
        cells = (letter.run_id[:8], letter.task, letter.stage, letter.cause, moment, str(letter.attempts))
        shown.add_row(*cells, reason.replace("[", r"\["))
    console.print(shown if found else "no dead letters", highlight=False)
    if found:
        error_console.print("do one again with: mloc replay ID", highlight=False)


@app.command()
def replay(
    task: Annotated[str | None, typer.Argument(metavar="TASK", help="Its id or name.", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--all", help="All dead letters.")] = False,
    cause: OfCause = None,
    json: AsJson = False,
) -> None:
    """Do a task again that failed or was cancelled, with the file as it was; stages that it finished are kept."""
    if every == (task is not None):
        fail("mloc replay wants one task, or --all", "see: mloc dead-letters")
    chosen = _cause(cause)
    if cause and not every:
        fail("--cause chooses among --all", f"write: mloc replay --all --cause {cause}")
    from mloc_dagster.cli.usage import check_budgets
    from mloc_dagster.definitions.replay import ReplayRefused
    from mloc_dagster.definitions.replay import replay as start_again
    from mloc_dagster.placement.failures import letters

    instance, home = open_runs()
    ids = [letter.run_id for letter in letters.dead_letters(instance, None, chosen)] if every else [task]
    started, refused = [], []
    for one in ids:
        run = find_run(instance, str(one))
        check_budgets(instance, home, run.tags.get("mloc/owner", "unknown"), run.tags.get("mloc/project", "default"))
        try:
            started.append({"task_id": start_again(instance, run), "replay_of": run.run_id})
        except ReplayRefused as error:
            if not every:
                fail(str(error), error.hint)
            refused.append(str(error))
    if json:
        as_json({"started": started, "refused": refused})
    else:
        for one in started:
            console.print(f"{one['task_id']} replays {one['replay_of'][:8]}", highlight=False)
        console.print(f"{len(started)} started; follow one with: mloc logs -f ID", highlight=False)
    for reason in refused:
        error_console.print(reason, style="yellow", highlight=False, markup=False)
    raise typer.Exit(1 if refused else 0)


def _cause(text: str | None) -> Cause | None:
    from mloc_dagster.placement.failures.cause import Cause

    if text is None:
        return None
    try:
        return Cause(text)
    except ValueError:
        fail(f"--cause {text}: not a cause of failures", f"causes: {', '.join(Cause)}")
