"""One spelling for every key: aliases renamed, unknown keys found, before types are checked."""

from __future__ import annotations

import types
from collections.abc import Iterator
from functools import cache
from typing import Any, Union, get_args, get_origin

from mloc_dagster.spec.base import Also, Section
from mloc_dagster.spec.faults import Fault, nearest, shown
from mloc_dagster.spec.stage import StageSpec
from mloc_dagster.spec.tree import Mapping, Sequence, path_text


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
            faults.append(_unknown(key, value, section, names, tree))
            continue
        name = name or key
        if name in result:
            other = result.origins[name]
            what = f"means the same as {other.path[-1]} on line {other.key[0]}"
            faults.append(Fault(*origin.key, origin.text, what, shown(value), "keep one of them"))
            continue
        if value is None and name in section.model_fields and section.model_fields[name].annotation is not Any:
            continue
        field = section.model_fields.get(name)
        result.put(name, _inner(value, field.annotation, faults) if field else value, origin)
    return result


def _inner(value: object, annotation: object, faults: list[Fault]) -> object:
    shape = _shape(annotation)
    if isinstance(value, Mapping):
        if section := shape.get("one"):
            return canonicalise(value, section, faults)
        if section := shape.get("values"):
            twin = Mapping()
            for key, item in value.items():
                inner = canonicalise(item, section, faults) if isinstance(item, Mapping) else item
                twin.put(key, inner, value.origins[key])
            return twin
    if isinstance(value, Sequence) and (section := shape.get("items")):
        twin = Sequence()
        twin.origins = list(value.origins)
        twin.extend(canonicalise(item, section, faults) if isinstance(item, Mapping) else item for item in value)
        return twin
    return value


@cache
def _shape(annotation: object) -> dict[str, type[Section]]:
    """Which sections a value of this type may hold: itself, as list items, or as map values."""
    shape: dict[str, type[Section]] = {}
    for option in _options(annotation):
        if isinstance(option, type) and issubclass(option, Section):
            shape["one"] = option
        for place, holder in (("items", list), ("values", dict)):
            if get_origin(option) is holder:
                inner = [o for o in _options(get_args(option)[-1]) if isinstance(o, type) and issubclass(o, Section)]
                if inner:
                    shape[place] = inner[0]
    return shape


def _options(annotation: object) -> Iterator[object]:
    if get_origin(annotation) in (Union, types.UnionType):
        for option in get_args(annotation):
            yield from _options(option)
    elif hasattr(annotation, "__metadata__"):
        yield from _options(get_args(annotation)[0])
    else:
        yield annotation


def _unknown(key: str, value: object, section: type[Section], names: dict[str, str], tree: Mapping) -> Fault:
    origin = tree.origins[key]
    guess = nearest(key, sorted(set(names)))
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
