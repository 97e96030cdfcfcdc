"""From a canonical tree to typed sections, with every type fault told at its place."""

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mloc_dagster.spec.base import Json
from mloc_dagster.spec.faults import MOST_OF_A_KIND, Fault, listing, nearest, shown
from mloc_dagster.spec.references import has_reference
from mloc_dagster.spec.tree import Mapping, Origin, Sequence, path_text, plain

S = TypeVar("S", bound=BaseModel)
Location = tuple[str | int, ...]
_MOST_ROUNDS = 50

_WAY_OUT = {
    "int": "write a whole number such as 8",
    "float": "write a number such as 0.7 or 2e-4",
    "bool": "write true or false",
    "string": "write text; quote it when it looks like something else",
    "list": "write a list: [a, b] or one `- item` a line",
    "dict": "write a map: key: value lines, indented",
    "model": "write a map: key: value lines, indented",
    "greater": "write a larger number",
    "less": "write a smaller number",
    "finite": "write a finite number",
    "missing": "add it",
    "too": "write more or fewer items, as the limit says",
}


def validate(tree: Mapping, section: type[S], here: Origin) -> tuple[S | None, tuple[str, ...], list[Fault]]:
    """Return the typed section, the dotted keys deferred because they hold references, and the faults.

    `here` is the place that faults of the section as a whole are told at.
    """
    values = plain(tree)
    deferred: list[Location] = []
    for _ in range(_MOST_ROUNDS):
        try:
            return section.model_validate(values), tuple(".".join(map(str, loc)) for loc in deferred), []
        except ValidationError as error:
            details = error.errors(include_url=False)
        waiting = list(dict.fromkeys(loc for detail in details if (loc := _awaited(tree, values, detail, deferred))))
        if not waiting:
            return None, (), _faults(tree, details[:MOST_OF_A_KIND], here)
        for loc in waiting:
            _prune(values, loc)
        deferred.extend(waiting)
    return None, (), [Fault(*here.value, here.text, "holds too many references that need a type", "", "write values")]


def _awaited(tree: Mapping, values: Json, detail: ErrorDetails, deferred: list[Location]) -> Location | None:
    """Return the place to defer: a reference where a typed value belongs, or what lacks a value that was deferred."""
    loc = detail["loc"]
    if detail["type"] == "missing" and loc in deferred:
        return _in_a_map(loc[:-1]) or None
    walked, _ = _value_at(tree, loc)
    return _in_a_map(walked) if _is_reference(values, walked) else None


def _in_a_map(loc: Location) -> Location:
    """The nearest place that is a key of a map: a list with an item that cannot be typed waits as a whole."""
    while loc and isinstance(loc[-1], int):
        loc = loc[:-1]
    return loc


def origin_at(tree: Mapping, loc: Location) -> Origin | None:
    """Return the place of the entry at `loc`, or of its nearest parent that was written."""
    return _value_at(tree, loc)[1]


def _value_at(tree: Mapping, loc: Location) -> tuple[Location, Origin | None]:
    """Walk as far as the tree goes; parts that name a union's option are passed over."""
    value: Json = tree
    origin: Origin | None = None
    walked: list[str | int] = []
    for part in loc:
        if isinstance(value, Mapping) and part in value:
            origin, value = value.origins[str(part)], value[str(part)]
            walked.append(part)
        elif isinstance(value, Sequence) and isinstance(part, int) and part < len(value):
            origin, value = value.origins[part], value[part]
            walked.append(part)
    return tuple(walked), origin


def _is_reference(values: Json, loc: Location) -> bool:
    for part in loc:
        if not _has(values, part):
            return False
        values = values[part]
    return bool(loc) and has_reference(values)


def _has(values: Json, part: str | int) -> bool:
    if isinstance(values, list):
        return isinstance(part, int) and part < len(values)
    return isinstance(values, dict) and part in values


def _prune(values: Json, loc: Location) -> None:
    for part in loc[:-1]:
        if not _has(values, part):
            return
        values = values[part]
    if isinstance(values, dict):
        values.pop(loc[-1], None)


def _faults(tree: Mapping, details: list[ErrorDetails], here: Origin) -> list[Fault]:
    grouped: dict[Location, list[ErrorDetails]] = {}
    for detail in details:
        walked, _ = _value_at(tree, detail["loc"])
        missing = detail["type"] == "missing"
        grouped.setdefault((*walked, str(detail["loc"][-1])) if missing else walked, []).append(detail)
    return [_fault(tree, group, here) for group in grouped.values()]


def _fault(tree: Mapping, group: list[ErrorDetails], here: Origin) -> Fault:
    first = group[0]
    origin = origin_at(tree, first["loc"]) or here
    if first["type"] == "missing":
        key = str(first["loc"][-1])
        return Fault(*origin.key, path_text((*origin.path, key)), "is missing", "", f"add {key}: …")
    whats = list(dict.fromkeys(_what(detail) for detail in group))
    way_out = next((text for text in map(_way_out, group) if text), "see `mloc schema` for what may stand here")
    return Fault(*origin.value, origin.text, " or ".join(whats[:3]), shown(first["input"]), way_out)


def _what(detail: ErrorDetails) -> str:
    if detail["type"] == "value_error":
        what = str(detail["msg"]).removeprefix("Value error, ").split("; ")[0]
        return what.removeprefix(f"{detail['input']!r:.60} ")
    if detail["type"] == "string_pattern_mismatch":
        return "is not of the right form"
    message = detail["msg"][:1].lower() + detail["msg"][1:]
    return message.removeprefix("input ").replace("a valid dictionary or instance of", "a map for")


def _way_out(detail: ErrorDetails) -> str:
    context: AnyMapping[str, Json] = detail.get("ctx", {})
    kind = detail["type"]
    if kind == "literal_error":
        choices = [part.strip().strip("'") for part in str(context["expected"]).replace(" or ", ", ").split(", ")]
        guess = nearest(str(detail["input"]), choices)
        return f"did you mean {guess}?" if guess else f"write one of {listing(choices)}"
    if kind == "value_error":
        _, _, way_out = str(detail["msg"]).partition("; ")
        return way_out
    if kind == "string_pattern_mismatch":
        return f"write text of the form {context.get('pattern')}"
    if kind == "string_too_short":
        return "write text that is not empty"
    return next((text for key, text in _WAY_OUT.items() if kind.startswith(key)), "")
