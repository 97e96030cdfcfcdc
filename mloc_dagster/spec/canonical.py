"""One spelling for every key: aliases renamed, unknown keys found, before types are checked."""

from __future__ import annotations

import types
from collections.abc import Iterator
from functools import cache
from typing import Any, Union, get_args, get_origin

from mloc_dagster.spec.base import Also, Json, Section
from mloc_dagster.spec.faults import MAX_FAULTS, Fault, nearest, shown
from mloc_dagster.spec.stage import StageSpec
from mloc_dagster.spec.tree import Mapping, Sequence, WrittenFloat, WrittenInt, path_text

_NUMBERS = frozenset({int, float})
_NOT_TEXT = frozenset({int, float, bool, Any})


@cache
def spellings(section: type[Section]) -> dict[str, str]:
    """All accepted spellings of a section's keys, each with its canonical one."""
    names = {name: name for name in section.model_fields}
    for name, field in section.model_fields.items():
        for mark in field.metadata:
            if isinstance(mark, Also):
                names.update(dict.fromkeys(mark.names, name))
    return names


def canonicalise(tree: Mapping, section: type[Section], faults: list[Fault]) -> Mapping:
    """Return `tree` with canonical keys at every level; unknown and doubly given keys become faults."""
    names = spellings(section)
    open_ended = section.model_config.get("extra") == "allow"
    result = Mapping()
    for key, value in tree.items():
        origin = tree.origins[key]
        name = names.get(key)
        if name is None and not open_ended:
            faults.append(_unknown(key, value, section, names, tree, faults))
            continue
        name = name or key
        if name in result:
            other = result.origins[name]
            what = f"means the same as {other.path[-1]} on line {other.key[0]}"
            faults.append(Fault(*origin.key, origin.text, what, shown(value), "keep one of them"))
            continue
        field = section.model_fields.get(name)
        if field and isinstance(value, bool) and _takes(field.annotation) <= _NUMBERS:
            way_out = "write a number such as 8"
            faults.append(Fault(*origin.value, origin.text, "must be a number", shown(value), way_out))
            continue
        result.put(name, _inner(value, field.annotation, faults) if field else value, origin)
    return result


def drop_nulls(tree: Mapping, section: type[Section]) -> Mapping:
    """Return a canonical tree without the keys that are null, which stand for the default."""
    result = Mapping()
    for key, value in tree.items():
        field = section.model_fields.get(key)
        if value is None and field and field.annotation is not Any:
            continue
        inner = _shape(field.annotation).get("one") if field else None
        kept = drop_nulls(value, inner) if inner and isinstance(value, Mapping) else value
        result.put(key, kept, tree.origins[key])
    return result


def _inner(value: Json, annotation: object, faults: list[Fault]) -> Json:
    if isinstance(value, (WrittenInt, WrittenFloat)) and str in (kinds := _takes(annotation)) and not kinds & _NOT_TEXT:
        return value.text
    shape = _shape(annotation)
    if isinstance(value, Mapping):
        if section := shape.get("one"):
            return canonicalise(value, section, faults)
        if section := shape.get("values"):
            twin = Mapping()
            for key, item in value.items():
                inner = drop_nulls(canonicalise(item, section, faults), section) if isinstance(item, Mapping) else item
                twin.put(key, inner, value.origins[key])
            return twin
        if _holds_text(annotation, dict):
            twin = Mapping()
            for key, item in value.items():
                twin.put(key, _inner(item, str, faults), value.origins[key])
            return twin
    if isinstance(value, Sequence) and (section := shape.get("items")):
        items = Sequence()
        items.origins = list(value.origins)
        items.extend(
            drop_nulls(canonicalise(i, section, faults), section) if isinstance(i, Mapping) else i for i in value
        )
        return items
    if isinstance(value, Sequence) and _holds_text(annotation, list):
        items = Sequence()
        items.origins = list(value.origins)
        items.extend(_inner(item, str, faults) for item in value)
        return items
    return value


@cache
def _takes(annotation: object) -> frozenset[object]:
    """The plain types that a value of this type may have; a list or map counts as its origin."""
    return frozenset(get_origin(option) or option for option in options(annotation)) - {type(None)}


@cache
def _holds_text(annotation: object, holder: type) -> bool:
    """Whether it is a list of text, or a map to text."""
    inner = [get_args(option)[-1] for option in options(annotation) if get_origin(option) is holder]
    return inner == [str]


@cache
def _shape(annotation: object) -> dict[str, type[Section]]:
    """Which sections a value of this type may hold: itself, as list items, or as map values."""
    shape: dict[str, type[Section]] = {}
    for option in options(annotation):
        if isinstance(option, type) and issubclass(option, Section):
            shape["one"] = option
        for place, holder in (("items", list), ("values", dict)):
            if get_origin(option) is holder:
                inner = [o for o in options(get_args(option)[-1]) if isinstance(o, type) and issubclass(o, Section)]
                if inner:
                    shape[place] = inner[0]
    return shape


def options(annotation: object) -> Iterator[object]:
    """Yield the members of a union, or the type itself, without annotations."""
    if get_origin(annotation) in (Union, types.UnionType):
        for option in get_args(annotation):
            yield from options(option)
    elif hasattr(annotation, "__metadata__"):
        yield from options(get_args(annotation)[0])
    else:
        yield annotation


def _unknown(
    key: str, value: object, section: type[Section], names: dict[str, str], tree: Mapping, faults: list[Fault]
) -> Fault:
    origin = tree.origins[key]
    guess = nearest(key, sorted(set(names))) if len(faults) < MAX_FAULTS else None
    home = None if guess else _elsewhere(key, section)
    if guess:
        way_out = f"did you mean {guess}?"
    elif home:
        way_out = f"it belongs at {home}"
    else:
        way_out = f"keys here: {', '.join(sorted(section.model_fields))}"
    return Fault(*origin.key, origin.text, "is not a key of the task language", shown(value, 40), way_out)


def _elsewhere(key: str, section: type[Section]) -> str | None:
    return next((path for name, owner, path in _all_keys() if name == key and owner is not section), None)


@cache
def _all_keys() -> tuple[tuple[str, type[Section], str], ...]:
    found: list[tuple[str, type[Section], str]] = []

    def walk(section: type[Section], path: tuple[str, ...]) -> None:
        for spelling, name in spellings(section).items():
            found.append((spelling, section, path_text((*path, spelling))))
            inner = _shape(section.model_fields[name].annotation).get("one")
            if inner and len(path) < 5 and spelling == name:
                walk(inner, (*path, name))

    walk(StageSpec, ("spec",))
    return tuple(sorted(found, key=lambda entry: entry[2].count(".")))
