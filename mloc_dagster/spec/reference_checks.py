"""Checks of references: every `${...}`, template column and stage output names a result that is there in time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass

from mloc_dagster.spec import references as refs
from mloc_dagster.spec.composition import Draft
from mloc_dagster.spec.faults import Fault, listing, nearest, shown
from mloc_dagster.spec.tree import Mapping, Origin
from mloc_dagster.spec.tree import Sequence as TreeList
from mloc_dagster.spec.typed import origin_at

_ENVELOPE = ("task_id", "stage", "worker", "metadata", "received_at", "result")
_EXPRESSION = re.compile(r"[\w-]+(\.\w+|\[\d+\])+")


def references(trees: dict[str, Mapping], drafts: Sequence[Draft], requires: tuple[str, ...]) -> Iterator[Fault]:
    """Faults of every reference: malformed, unknown stage, not an ancestor, or not in an envelope."""
    parents = {draft.name: draft.depends_on for draft in drafts}
    for name, tree in trees.items():
        around = _Around(name, parents, frozenset(_ancestors(name, parents)), requires)
        for path in refs.unclosed(tree):
            place = origin_at(tree, path)
            if place:
                way_out = "close it with }, or write $${ for a literal"
                yield Fault(*place.value, place.text, "opens a reference that is never closed", "${", way_out)
        for path, body in refs.find(tree):
            place = origin_at(tree, path)
            if place:
                yield from _reference(body, place, around)
        for body, place in _named_results(tree):
            yield from _reference(body, place, around)


@dataclass(frozen=True)
class _Around:
    """A stage, and what it may name."""

    stage: str
    parents: AnyMapping[str, tuple[str, ...]]
    ancestors: frozenset[str]
    requires: tuple[str, ...]


def _reference(body: str, place: Origin, around: _Around) -> Iterator[Fault]:
    seen = shown_reference(body)
    try:
        reference = refs.parse(body)
    except refs.BadReference as error:
        what, _, way_out = str(error).partition("; ")
        yield Fault(*place.value, place.text, what, seen, way_out)
        return
    if reference.is_environment:
        return
    if reference.head not in around.ancestors and reference.head not in around.requires:
        yield _not_an_ancestor(reference.head, place, around, seen)
        return
    first = str(reference.path[0])
    if first not in _ENVELOPE:
        guess = nearest(first, _ENVELOPE)
        way_out = f"did you mean {reference.head}.{guess}?" if guess else f"write {reference.head}.result.{first}"
        yield Fault(*place.value, place.text, f"an envelope has no {first:.60}", seen, way_out)


def shown_reference(body: str) -> str:
    """Return a reference as a short text for a message."""
    return f"${{{body}}}" if len(body) <= 80 else f"${{{body[:80]}…"


def _not_an_ancestor(head: str, place: Origin, around: _Around, seen: str) -> Fault:
    if head == around.stage:
        return Fault(*place.value, place.text, "a stage cannot use its own result", seen, "name an earlier stage")
    if head in around.parents:
        way_out = f"add {head} to dependsOn of {around.stage}"
        return Fault(*place.value, place.text, f"{head} does not run before this stage", seen, way_out)
    names = [name for name in around.parents if name and name != around.stage]
    guess = nearest(head, [*names, *around.requires])
    way_out = (
        f"stages here: {listing(names)}" if names else "name the task in spec.dependsOn, or write $${ for a literal"
    )
    way_out = f"did you mean {guess}?" if guess else way_out
    return Fault(*place.value, place.text, f"there is no stage {shown(head)}", seen, way_out)


def _named_results(tree: Mapping) -> Iterator[tuple[str, Origin]]:
    """What template columns and input sources name without `${}`, as the body of a reference."""
    data = tree.get("data")
    if not isinstance(data, Mapping):
        return
    template = data.get("template")
    columns = template.get("columns") if isinstance(template, Mapping) else None
    for column in columns if isinstance(columns, TreeList) else []:
        if not isinstance(column, Mapping):
            continue
        node, path, expr = column.get("node"), column.get("path"), column.get("expr")
        if isinstance(node, str) and "${" not in node:
            yield f"{node}.{path}" if isinstance(path, str) else f"{node}.result", column.origins["node"]
        elif isinstance(expr, str) and _EXPRESSION.fullmatch(expr.strip()):
            yield expr, column.origins["expr"]
    sources = data.get("input_sources")
    for source in sources.values() if isinstance(sources, Mapping) else []:
        output = source.get("stage_output") if isinstance(source, Mapping) else None
        if isinstance(output, str) and "${" not in output:
            yield output if "." in output else f"{output}.result", source.origins["stage_output"]


def _ancestors(name: str, parents: AnyMapping[str, tuple[str, ...]]) -> set[str]:
    found: set[str] = set()
    waiting = list(parents.get(name, ()))
    while waiting:
        parent = waiting.pop()
        if parent not in found:
            found.add(parent)
            waiting.extend(parents.get(parent, ()))
    return found
