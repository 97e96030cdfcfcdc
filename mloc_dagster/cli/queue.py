"""`mloc queue`, `mloc workers`, `mloc daemon`: who waits for what, who holds what, and what starts runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mloc_dagster.cli.app import AsJson, LogFormat, app, check_log_format
from mloc_dagster.cli.screen import as_json, console, error_console, fail, table

if TYPE_CHECKING:
    from mloc_dagster.client.shapes import Worker
    from mloc_dagster.placement.ledger import Ledger

_workers = typer.Typer(help="Show workers and who holds what of them; take one out of service.")
app.add_typer(_workers, name="workers")
Name = Annotated[str, typer.Argument(metavar="WORKER", help="A worker's name.")]


@app.command()
def queue(
    json: AsJson = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=500, help="How many, first come first.")] = 20,
) -> None:
    """Show the runs that wait, in the order in which they would begin, and why they wait."""
    root, ledger = _ledger()
    from mloc_dagster.placement.queue.scheduler import VIEW
    from mloc_dagster.placement.queue.signals import daemon_is_there

    view = ledger.saved(VIEW) or {"waiting": 0, "reasons": {}, "first": [], "at": None}
    rows = view["first"][:limit]
    if json:
        as_json({**view, "first": rows})
        return
    if not daemon_is_there(root):
        hint = "no daemon runs on this machine: this is what the last one knew; start one with: mloc up"
        error_console.print(hint, style="yellow", highlight=False)
    shown = table("", "", "id", "task", "owner", "priority", "waits", "why")
    for place, row in enumerate(rows, 1):
        waits = _span(time.time() - row["submitted"])
        shown.add_row(
            str(place), row["run_id"][:8], row["task"], row["owner"], str(row["priority"]), waits, row["reason"]
        )
    console.print(shown if rows else "nothing waits", highlight=False)
    if view["waiting"] > len(rows):
        console.print(f"and {view['waiting'] - len(rows)} more", highlight=False)


@_workers.callback(invoke_without_command=True)
def workers(context: typer.Context, json: AsJson = False) -> None:
    """Show workers, what of each is in use, and who holds it."""
    if context.invoked_subcommand:
        return
    from mloc_dagster.placement.ledger.rows import worker_rows

    _, ledger = _ledger()
    seen, leases = ledger.snapshot()
    rows = worker_rows(seen, leases)
    if json:
        as_json(rows)
        return
    shown = table("", "worker", "state", "cores", "memory", "GPUs", "load", "held by")
    for row in rows:
        shown.add_row(*_cells(row))
    console.print(shown if rows else "no workers yet: the daemon enters them; start it with: mloc up", highlight=False)


@_workers.command()
def cordon(name: Name) -> None:
    """Have a worker take no new runs; those that are there go on."""
    _set("cordon", name)


@_workers.command()
def uncordon(name: Name) -> None:
    """Have a worker take new runs again."""
    _set("uncordon", name)


@_workers.command()
def drain(
    name: Name,
    wait: Annotated[bool, typer.Option(help="Wait until nothing runs there any more.")] = True,
) -> None:
    """Have a worker take no new runs, and wait until those that are there have ended."""
    ledger = _set("drain", name)
    while wait and any(lease.worker == name for lease in ledger.snapshot()[1]):
        time.sleep(0.5)
    if wait:
        console.print(f"{name} is empty", highlight=False)


@app.command()
def daemon(
    workspace: Annotated[
        Path | None, typer.Option("--workspace", "-w", exists=True, dir_okay=False, help="A workspace.yaml.")
    ] = None,
    log_format: LogFormat = None,
) -> None:
    """Run the daemon alone: queue, sensors, schedules, monitoring. `mloc up` runs it beside the web UI."""
    from mloc_dagster.cli.home import open_home

    check_log_format(log_format)
    instance, home = open_home()
    instance.dispose()
    home.inbox.mkdir(parents=True, exist_ok=True)
    from mloc_dagster.definitions.daemon import main

    raise typer.Exit(main(["-w", str(workspace)] if workspace else []))


def _ledger() -> tuple[Path, Ledger]:
    from mloc_dagster.cli.home import open_home
    from mloc_dagster.placement.ledger import Ledger

    instance, _ = open_home()
    return Path(instance.root_directory), Ledger.of_instance(instance)


def _set(verb: str, name: str) -> Ledger:
    root, ledger = _ledger()
    from mloc_dagster.placement.queue.signals import knock
    from mloc_dagster.placement.workers.room import VERBS

    if not ledger.set_state(name, VERBS[verb]):
        names = ", ".join(seen.worker.name for seen in ledger.snapshot()[0])
        fail(f"there is no worker {name!r}", f"workers: {names}" if names else "none is known yet; start mloc up")
    knock(root)
    console.print(f"{name} is {VERBS[verb]}", highlight=False)
    return ledger


def _cells(row: Worker) -> tuple[str, ...]:
    """What is shown of a worker."""
    from mloc_dagster.spec.quantity import format_bytes

    return (
        row["name"],
        f"{row['state']}, silent" if row["silent"] else row["state"],
        f"{row['cpu']['held']:g}/{row['cpu']['total']:g}",
        f"{format_bytes(row['memory']['held'])}/{format_bytes(row['memory']['total'])}",
        "\n".join(f"{device['index']} {device['name']} {device['held']:g}/1" for device in row["devices"]) or "-",
        f"{row['load']:.0%}",
        "\n".join(f"{lease['run_id'][:8]} {lease['owner']}" for lease in row["leases"]) or "-",
    )


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{max(0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
