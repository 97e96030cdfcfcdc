"""`mloc provenance`: what published weights were made of and with, and whether they still are what was published."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mloc_dagster.cli.app import AsJson, app
from mloc_dagster.cli.screen import as_json, console, error_console, fail, table

if TYPE_CHECKING:
    from mloc_dagster.provenance.signature import Document
    from mloc_dagster.store.home import Home

_provenance = typer.Typer(help="Show and verify where published weights come from.", no_args_is_help=True)
app.add_typer(_provenance, name="provenance")
Target = Annotated[
    str,
    typer.Argument(
        metavar="PATH|TASK",
        help="A folder with published weights, a provenance.cdx.json, a task's id or name, or <task>/<stage>.",
        show_default=False,
    ),
]
Key = Annotated[
    Path | None,
    typer.Option("--key", help="Public key (PEM) of the publisher; default: this home's own.", show_default=False),
]


@_provenance.command()
def verify(target: Target, key: Key = None, json: AsJson = False) -> None:
    """Compute the digest of every file again and check the signature.

    Exit code 0: all is as it was published; 1: something is not, each with its reason; 2: there is nothing to verify.
    """
    from mloc_dagster.provenance import verify as checks
    from mloc_dagster.provenance.keys import KeyUnusable, public_key, trusted_key
    from mloc_dagster.store.home import Home

    home = Home.current()
    document, roots = _found(home, target)
    try:
        trusted = public_key(key) if key else trusted_key(home)
    except KeyUnusable as error:
        fail(str(error))
    try:
        found = checks.verify(document, roots, trusted)
    except checks.Unreadable as error:
        if json:
            as_json({"ok": False, "document": str(document), "findings": [{"kind": "document", "what": str(error)}]})
            raise typer.Exit(1) from None
        fail(str(error), "weights that are published without it cannot be verified; publish them again", code=1)
    if json:
        findings = [{"kind": one.kind, "what": one.what} for one in found.findings]
        told = {"document": str(document), "model": found.model, "files": list(found.files), "key": found.key}
        as_json({"ok": not findings, **told, "findings": findings})
    for finding in found.findings if not json else ():
        error_console.print(f"{finding.kind}: {finding.what}", style="red", highlight=False, markup=False)
    if found.findings:
        raise typer.Exit(1)
    if not json:
        told = f"{found.model}: {len(found.files)} files are as they were published, signed by the key {found.key}"
        console.print(told, highlight=False, markup=False, soft_wrap=True)


@_provenance.command()
def show(target: Target, json: AsJson = False) -> None:
    """Show what weights were made of and with, as their document says; see also: mloc provenance verify."""
    from mloc_dagster.provenance.verify import Unreadable, read
    from mloc_dagster.store.home import Home

    path, _ = _found(Home.current(), target)
    try:
        document = read(path)
    except Unreadable as error:
        fail(str(error), code=1)
    if json:
        as_json(document)
        return
    try:
        _print(document)
    except (KeyError, TypeError, AttributeError, IndexError):
        fail(f"{path} does not name a model as ours do", "see it with --json", code=1)


def _print(document: Document) -> None:
    model = document["metadata"]["component"]
    shown = table("", "what", "name", "value")
    shown.add_row("model", model["name"], model["version"])
    shown.add_row("made", "at", document["metadata"]["timestamp"])
    for one in model["properties"]:
        shown.add_row("model", one["name"].removeprefix("mloc:"), one["value"])
    for one in model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]:
        shown.add_row("metric", one["type"], one["value"])
    for one in document["components"]:
        digest = next((p["value"] for p in one.get("properties", ()) if p["name"] == "mloc:digest"), "")
        if one["type"] not in ("library", "file"):
            shown.add_row(one["type"], one["name"], one.get("version") or digest)
    for one in model["components"]:
        shown.add_row("file", one["name"], one["hashes"][0]["content"])
    counted = Counter(one["type"] for one in document["components"])
    console.print(shown)
    console.print(f"{counted['library']} packages; all of it: --json", highlight=False)


def _found(home: Home, target: str) -> tuple[Path, tuple[Path, ...]]:
    """Return where the document of a path or task is, and the folders that its files may lie in."""
    from mloc_dagster.provenance.names import DOCUMENT
    from mloc_dagster.store.results import RESPONSES, find_result, read_envelope

    path = Path(target).expanduser()
    if path.is_file():
        return path, (path.parent,)
    if path.is_dir():
        return path / DOCUMENT, (path,)
    folder = _published(home, target) or find_result(home, target)
    if folder is None:
        fail(f"{target} is no folder, and no task here has that id or name", "see: mloc list")
    origin = read_envelope(folder / RESPONSES).metadata.get("reused_from")
    return folder / DOCUMENT, (folder, home.results / str(origin)) if origin else (folder,)


def _published(home: Home, target: str) -> Path | None:
    """Of a task the result that was published last: the stage that finished last may have no weights."""
    from mloc_dagster.provenance.names import DOCUMENT
    from mloc_dagster.store.results import find_result

    found = find_result(home, target)
    if found is None or "/" in target or (found / DOCUMENT).is_file():
        return found
    beside = [path.parent for path in found.parent.glob(f"*/{DOCUMENT}")]
    return max(beside, key=lambda folder: (folder / DOCUMENT).stat().st_mtime_ns, default=found)
