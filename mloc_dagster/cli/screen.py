"""What the command shows: consoles, tables, faults."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NoReturn

import typer
from rich.console import Console
from rich.table import Table

from mloc_dagster.spec.base import Json
from mloc_dagster.spec.faults import Fault

console = Console()
error_console = Console(stderr=True)


def fail(what: str, way_out: str = "", code: int = 2) -> NoReturn:
    """Say what is wrong and what to do, and end with an exit code."""
    error_console.print(what, style="red", highlight=False, markup=False, soft_wrap=True)
    if way_out:
        error_console.print(way_out, highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(code)


def warn(warnings: Iterable[Fault]) -> None:
    """Show warnings on the error stream."""
    for warning in warnings:
        error_console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def table(title: str, *columns: str) -> Table:
    """Return an empty table in the command's style."""
    made = Table(
        title=title or None, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False
    )
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def as_json(value: Json) -> None:
    """Print JSON for programs to read."""
    console.out(json.dumps(value, indent=2, ensure_ascii=False, default=str), highlight=False)
