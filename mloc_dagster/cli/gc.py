"""`mloc gc`: what takes room and is not needed any more."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from mloc_dagster.cli.app import AsJson, app
from mloc_dagster.cli.screen import as_json, console, error_console, fail, table

if TYPE_CHECKING:
    from mloc_dagster.placement.retention.found import Found

_AGE = re.compile(r"(\d+(?:\.\d+)?)([hdw])")
_DAYS = {"h": 1 / 24, "d": 1.0, "w": 7.0}
_SHOWN = 20


@app.command()
def gc(
    remove: Annotated[
        bool, typer.Option("--remove/--dry-run", help="Remove it; without this, only show what would go.")
    ] = False,
    artifacts: Annotated[
        str, typer.Option("--artifacts-older-than", help="In the artifact store: work untouched for so long (12h, 7d).")
    ] = "7d",
    work: Annotated[
        str, typer.Option("--work-older-than", help="Unfinished stages untouched for so long; they begin anew then.")
    ] = "30d",
    runs: Annotated[
        str | None,
        typer.Option(
            "--runs-older-than", help="Also Dagster's runs and events; the newest success of each task stays."
        ),
    ] = None,
    cache: Annotated[
        str | None, typer.Option("--cache-above", help="Also pulled models and data, least used first, until 200Gi.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Show what is not needed any more, by kind and in bytes, or remove it. Runs may go on meanwhile."""
    from mloc_dagster.placement.retention.artifacts import StoreError
    from mloc_dagster.spec import SpecError
    from mloc_dagster.spec.quantity import format_bytes, parse_memory

    ages = [_days("--artifacts-older-than", artifacts), _days("--work-older-than", work)]
    run_days = None if runs is None else _days("--runs-older-than", runs)
    try:
        most = None if cache is None else parse_memory(cache)
    except ValueError as error:
        fail(f"--cache-above: {error}")
    try:
        found = list(_found(ages[0], ages[1], run_days, most))
        gone = [one.remove() if remove else one.size for one in found]
    except StoreError as error:
        fail(str(error), code=1)
    except SpecError as error:
        fail("\n".join(map(str, error.faults)))
    kinds = _by_kind(found, gone)
    if json:
        things = [{key: value for key, value in asdict(one).items() if key != "remove"} for one in found]
        as_json({"removed": remove, "kinds": kinds, "found": things})
        return
    shown = table("", "what", "count", "removed" if remove else "would go", "which")
    for kind, (count, size) in kinds.items():
        names = [f"{one.name} ({one.why})" for one in found if one.kind == kind]
        more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
        shown.add_row(kind, str(count), format_bytes(size), "\n".join([*names[:_SHOWN], *more]).replace("[", r"\["))
    console.print(shown if found else "nothing may go", highlight=False)
    if found and not remove:
        error_console.print("nothing was removed; do it with: mloc gc --remove", style="yellow", highlight=False)


def _found(artifacts: float, work: float, runs: float | None, cache: int | None) -> Iterator[Found]:
    from executors.remote.store import Store
    from mloc_dagster.cli.home import open_home
    from mloc_dagster.placement.retention.artifacts import old_artifacts
    from mloc_dagster.placement.retention.caches import least_used
    from mloc_dagster.placement.retention.runs import old_runs
    from mloc_dagster.placement.retention.work import broken_uploads, old_locks, old_work
    from mloc_dagster.placement.workers.declared import fleet_of

    instance, home = open_home()
    store = fleet_of(home).artifacts
    if store:
        yield from old_artifacts(home, Store(store), artifacts)
    yield from old_work(home, work)
    yield from old_locks(home, work)
    yield from broken_uploads(home)
    if runs is not None:
        yield from old_runs(instance, home, runs)
    if cache is not None:
        yield from least_used(instance, home, cache)


def _by_kind(found: list[Found], gone: list[int]) -> dict[str, tuple[int, int]]:
    """How many of a kind, and their bytes."""
    sizes: dict[str, list[int]] = defaultdict(list)
    for one, size in zip(found, gone, strict=True):
        sizes[one.kind].append(size)
    return {kind: (len(those), sum(those)) for kind, those in sizes.items()}


def _days(option: str, text: str) -> float:
    found = _AGE.fullmatch(text)
    if found is None:
        fail(f"{option} {text}: no age", "write 12h, 7d or 4w")
    return float(found[1]) * _DAYS[found[2]]
