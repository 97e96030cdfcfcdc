"""`mloc verify`: checks a running deployment from end to end, by its address and a token."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from mloc_dagster.cli.app import AsJson, app
from mloc_dagster.cli.screen import as_json, console, fail


@app.command()
def verify(
    url: Annotated[
        str, typer.Option("--url", envvar="MLOC_URL", help="Address of the service.")
    ] = "http://127.0.0.1:3000",
    token: Annotated[
        str | None,
        typer.Option(envvar="MLOC_TOKEN", help="A token that may submit; default: this home's.", show_default=False),
    ] = None,
    seconds: Annotated[float, typer.Option("--timeout", min=1, help="How long the task may take, in seconds.")] = 300,
    json: AsJson = False,
) -> None:
    """Check a running deployment: health, tokens, a task from submit to result, usage, metrics, a bad file.

    Exit code 0: all is well; 1: something is not; 2: the request was wrong.
    """
    from mloc_dagster.client import Client
    from mloc_dagster.client.verify import verify as checks

    try:
        client = Client(url, token or _own_token())
    except ValueError as error:
        fail(str(error))
    found = []
    for check in checks(client, url, seconds):
        found.append(check)
        if not json:
            mark, told = ("failed", check.wrong) if check.wrong else ("ok", check.told)
            line = f"{mark:<7}{check.name}: {told} ({check.seconds:.1f} s)"
            console.print(line, style="red" if check.wrong else None, highlight=False, markup=False, soft_wrap=True)
    if json:
        as_json([asdict(check) for check in found])
    raise typer.Exit(int(any(check.wrong for check in found)))


def _own_token() -> str:
    from mloc_dagster.service.tokens import local_file
    from mloc_dagster.store.home import Home

    path = local_file(Home.current())
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        fail(f"no token was given, and {path} is not there", "write --token, or export MLOC_TOKEN")
