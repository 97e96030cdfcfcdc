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

LogFormat = Annotated[
    str | None,
    typer.Option("--log-format", metavar="text|json", help="How processes log (default: MLOC_LOG_FORMAT, else text)."),
]


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


def check_log_format(wanted: str | None) -> None:
    """Apply `--log-format`, and end the command when it, or what is to be traced, cannot be."""
    from mloc_dagster.cli.screen import fail
    from mloc_dagster.telemetry import logs, traces

    if wanted is not None:
        os.environ[logs.SETTING] = wanted
    try:
        logs.chosen()
        traces.wanted()
    except (logs.BadFormat, traces.Unusable) as error:
        fail(str(error))


def _version(on: bool) -> None:
    if on:
        typer.echo(f"mloc {__version__}")
        raise typer.Exit


# each adds its commands to `app`
from mloc_dagster.cli import (  # noqa: E402
    dead_letters,  # noqa: F401
    doctor,  # noqa: F401
    engines,  # noqa: F401
    files,  # noqa: F401
    gc,  # noqa: F401
    provenance,  # noqa: F401
    queue,  # noqa: F401
    reports,  # noqa: F401
    runs,  # noqa: F401
    schedule,  # noqa: F401
    service,  # noqa: F401
    tokens,  # noqa: F401
    usage,  # noqa: F401
    verify,  # noqa: F401
    worker,  # noqa: F401
)
