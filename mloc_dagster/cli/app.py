"""Commands of `mloc`, and the options that all of them share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from mloc_dagster import __version__

app = typer.Typer(
    name="mloc",
    help="Run LLM tasks from one YAML file: validate, plan, run, and look at what came out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

TaskPath = Annotated[Path, typer.Argument(metavar="FILE", help="A task file (YAML).", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OnCpu = Annotated[
    str | None, typer.Option("--on", metavar="cpu", help="cpu: take GPU requests as hints and run on the CPU.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Do the work again, also what an earlier run has done already.")]


@app.callback(invoke_without_command=False)
def options(
    home: Annotated[
        Path | None,
        typer.Option("--home", envvar="MLOC_HOME", help="Folder of all state (default ./.mloc).", show_default=False),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=lambda on: _version(on), help="Show the version.")
    ] = False,
) -> None:
    """Options before the command."""
    os.environ["MLOC_HOME"] = str((home or Path(".mloc")).expanduser().resolve())


def check_on(on: str | None) -> None:
    """Apply `--on`; only cpu is a place that can be forced."""
    from mloc_dagster.cli.screen import fail

    if on is None:
        return
    if on != "cpu":
        fail(f"--on {on}: not a place", "write --on cpu, or leave it out to use the GPUs of this machine")
    os.environ["MLOC_ON"] = "cpu"


def _version(on: bool) -> None:
    if on:
        typer.echo(f"mloc {__version__}")
        raise typer.Exit


# each adds its commands to `app`
from mloc_dagster.cli import dead_letters, doctor, engines, files, queue, runs, service, tokens  # noqa: E402,F401
