"""`mloc engines`: models that stay loaded between stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mloc_dagster.cli.app import AsJson, app
from mloc_dagster.cli.screen import as_json, console, fail, table
from mloc_dagster.spec.base import Json
from mloc_dagster.store.home import Home

if TYPE_CHECKING:
    from executors.serving.registry import EngineFolder

engines = typer.Typer(help="Show the engines that stay loaded between stages, and end them.")
app.add_typer(engines, name="engines")


@engines.callback(invoke_without_command=True)
def show(context: typer.Context, json: AsJson = False) -> None:
    """Show the engines that stay loaded between stages, and end them."""
    from mloc_dagster.spec.quantity import format_bytes

    if context.invoked_subcommand is not None:
        return
    rows = [_row(folder) for folder in _engines()]
    if json:
        as_json(rows)
        return
    if not rows:
        console.print("no engines are loaded", highlight=False)
        return
    shown = table("", "key", "model", "kind", "state", "memory", "pid")
    for row in rows:
        idle = row["idle_seconds"]
        state = row["state"] if idle is None else f"idle for {idle:.0f} s"
        memory = format_bytes(row["memory"])
        shown.add_row(row["key"], row["model"], row["kind"], state, memory, str(row["pid"]))
    console.print(shown)


@engines.command()
def stop(
    key: Annotated[str | None, typer.Argument(metavar="KEY", help="The engine's key, or its beginning.")] = None,
    all_of_them: Annotated[bool, typer.Option("--all", help="End all engines.")] = False,
) -> None:
    """End an engine; a stage that uses it at the moment starts another one."""
    if (key is None) == (not all_of_them):
        fail("name one engine, or write --all", "mloc engines shows the keys")
    found = [folder for folder in _engines() if all_of_them or folder.key.startswith(key or "")]
    if not found and not all_of_them:
        fail(f"{key}: no such engine", "mloc engines shows the keys")
    if key is not None and len(found) > 1:
        fail(f"{key} is the beginning of {len(found)} keys", "write more of it")
    for folder in found:
        with folder.locked():
            folder.end()
        console.print(f"ended {folder.key}", highlight=False)


def _engines() -> list[EngineFolder]:
    from executors.serving.registry import engines_of, registry_of

    return engines_of(registry_of(Home.current().cache))


def _row(folder: EngineFolder) -> dict[str, Json]:
    import time

    spec, state = folder.spec(), folder.state()
    since = state.idle_since if state else None
    return {
        "key": folder.key,
        "model": spec.name,
        "kind": spec.kind,
        "state": "loading" if not (state and state.ready) else "in use" if since is None else "idle",
        "idle_seconds": None if since is None else time.time() - since,
        "users": folder.leases(),
        "memory": folder.memory(),
        "pid": state.pid if state else None,
        "devices": list(spec.devices),
    }
