"""`mloc token`: who may use the service, and an address that logs a browser in."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from mloc_dagster.cli.app import AsJson, app
from mloc_dagster.cli.screen import as_json, console, error_console, fail, table

_tokens = typer.Typer(help="Make, list and revoke tokens of the service; log a browser in.", no_args_is_help=True)
app.add_typer(_tokens, name="token")


@_tokens.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who or what it is for.")],
    scope: Annotated[
        str,
        typer.Option(
            help="read: look; submit: also start and cancel tasks; admin: everything of people; worker: a machine that "
            "connects by itself (mloc worker), under the token's name."
        ),
    ] = "submit",
) -> None:
    """Make a token and print it; it is not shown again."""
    from mloc_dagster.service.tokens import SCOPES, Tokens
    from mloc_dagster.store.home import Home

    if scope not in SCOPES:
        fail(f"--scope {scope}: there is no such scope", f"there are {', '.join(SCOPES)}")
    if not name.strip() or not name.isprintable() or len(name) > 100:
        fail(f"{name!r} is no name for a token", "write at most 100 printable characters")
    try:
        made = Tokens(Home.current()).create(name, scope)  # pyright: ignore[reportArgumentType] - checked above
    except ValueError as error:
        fail(str(error), f"take another name, or revoke it with: mloc token revoke {name}")
    error_console.print("keep it safe: only its hash stays here", style="yellow")
    typer.echo(made)


@_tokens.command(name="list")
def list_(json: AsJson = False) -> None:
    """Show the tokens, not their secrets."""
    from mloc_dagster.service.tokens import Tokens
    from mloc_dagster.store.home import Home

    found = Tokens(Home.current()).all()
    if json:
        as_json([{"id": one.id, "name": one.name, "scope": one.scope, "created": one.created_at} for one in found])
        return
    shown = table("", "id", "name", "scope", "created")
    for one in found:
        shown.add_row(one.id, one.name, one.scope, time.strftime("%Y-%m-%d %H:%M", time.localtime(one.created_at)))
    console.print(shown if found else "no tokens yet; make one with: mloc token create NAME", highlight=False)


@_tokens.command()
def revoke(name: Annotated[str, typer.Argument(metavar="NAME", help="A token's name or id.")]) -> None:
    """Revoke a token, and end the browser sessions that it opened; a running service knows at once."""
    from mloc_dagster.service.tokens import Tokens
    from mloc_dagster.store.home import Home

    if not Tokens(Home.current()).revoke(name):
        fail(f"there is no token {name!r}", "see: mloc token list")
    console.print(f"{name} is revoked", highlight=False, markup=False)


@_tokens.command()
def url(
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="Port of the service.")] = 3000,
    host: Annotated[str, typer.Option(help="Its address, as the browser sees it.")] = "127.0.0.1",
) -> None:
    """Print an address that logs one browser in, once, within the hour, with all rights."""
    from mloc_dagster.service.tokens import Tokens, local_token
    from mloc_dagster.store.home import Home

    home = Home.current()
    code = Tokens(home).new_code(local_token(home).id)
    typer.echo(f"http://{f'[{host}]' if ':' in host else host}:{port}/login?code={code}")
