"""Commands that look at a task file: validate, plan, schema, init."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mloc_dagster.cli.app import AsJson, Fresh, OnCpu, TaskPath, app, check_on
from mloc_dagster.cli.screen import as_json, console, fail, table, warn


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", show_default=False)], json: AsJson = False
) -> None:
    """Check task files; every fault with file:line:column, the value, the reason and the way out."""
    from mloc_dagster.spec import SpecError, load_file

    report, faults = [], []
    for file in _expand(files):
        try:
            task = load_file(file)
        except SpecError as error:
            faults.extend(error.faults)
            report.append(
                {"file": str(file), "ok": False, "faults": [fault.as_dict() for fault in error.faults], "warnings": []}
            )
            continue
        warnings = [warning.as_dict() for warning in task.warnings]
        report.append({"file": str(file), "ok": True, "faults": [], "warnings": warnings})
        if not json:
            warn(task.warnings)
            stages = ", ".join(f"{stage.name} ({stage.spec.task_type})" for stage in task.stages)
            console.print(
                f"[green]ok[/] {file}: {task.name}, {len(task.stages)} stage(s): {stages}",
                highlight=False,
                soft_wrap=True,
            )
    if json:
        as_json(report)
        raise typer.Exit(2 if faults else 0)
    if faults:
        raise SpecError(faults)


@app.command()
def plan(file: TaskPath, json: AsJson = False, on: OnCpu = None, fresh: Fresh = False) -> None:
    """Show the steps of a task: devices, memory fit, GPU-hours, and what an earlier run has done already."""
    from mloc_dagster.placement.local.preview import preview
    from mloc_dagster.plan import compile_plan
    from mloc_dagster.spec import load_file
    from mloc_dagster.spec.quantity import format_bytes
    from mloc_dagster.store.home import Home

    check_on(on)
    compiled = compile_plan(load_file(file))
    rows = preview(compiled, Home.current(), fresh=fresh)
    if json:
        as_json(
            {
                "task": compiled.task.name,
                "owner": compiled.task.owner,
                "project": compiled.task.project,
                "steps": [row.as_dict() for row in rows],
                "warnings": [warning.as_dict() for warning in compiled.warnings],
            }
        )
        return
    warn(compiled.warnings)
    shown = table(
        f"{compiled.task.name} (project {compiled.task.project}, owner {compiled.task.owner})",
        "step",
        "kind",
        "needs",
        "runs on",
        "memory",
        "GPU-hours",
        "state",
    )
    for row in rows:
        memory = (
            f"{format_bytes(row.memory)} ±{row.band:.0%}" + ("" if row.fits else " does not fit") if row.memory else "-"
        )
        hours = f"{row.gpu_hours:.2f}" if row.gpu_hours is not None else "-"
        shown.add_row(row.key, row.kind, ", ".join(row.depends_on) or "-", row.device, memory, hours, row.state)
    console.print(shown)
    for row in rows:
        for note in row.notes:
            console.print(f"{row.key}: {note}", highlight=False, soft_wrap=True)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a task file, for completion in an editor."""
    from mloc_dagster.spec.schema import json_schema

    as_json(json_schema())


@app.command()
def init(
    task_type: Annotated[str, typer.Argument(help="The task type to start from.")] = "inference",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write (default <type>.yaml).", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a commented starter file for a task type."""
    from mloc_dagster.cli.starters import starter, starters
    from mloc_dagster.spec.faults import listing, nearest

    found = starters()
    if task_type not in found:
        guess = nearest(task_type, sorted(found))
        fail(
            f"there is no starter for {task_type!r}",
            f"did you mean {guess}?" if guess else f"there are {listing(sorted(found))}",
        )
    target = out or Path(f"{task_type}.yaml")
    if target.exists() and not force and not target.is_dir():
        fail(f"{target} is there already", "name another file with --out, or overwrite it with --force")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(starter(task_type), "utf-8")
    except OSError as error:
        fail(f"{target} cannot be written: {error.strerror}", "name another file with --out")
    console.print(
        f"wrote {target}; next: mloc validate {target}, then mloc run {target}", highlight=False, soft_wrap=True
    )


def _expand(paths: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        found.extend(sorted([*path.rglob("*.yaml"), *path.rglob("*.yml")]) if path.is_dir() else [path])
    if not found:
        fail("no task file found", "name a YAML file or a folder that holds some")
    return found
