"""Stages of a document: their order, what each depends on, and the merge over the base."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mloc_dagster.spec.base import Json
from mloc_dagster.spec.faults import Fault, listing, nearest, shown
from mloc_dagster.spec.tree import Mapping, Origin, Sequence

STAGE_NAME = r"^[A-Za-z_][A-Za-z0-9_-]{0,79}$"
_DEPENDS = ("dependsOn", "dependencies", "depends_on")


@dataclass(frozen=True)
class Draft:
    """A stage as written: its own keys, not yet merged over the base."""

    name: str
    depends_on: tuple[str, ...]
    keys: Mapping
    origin: Origin
    depends_origins: tuple[Origin, ...] = ()


def drafts(spec: Mapping, here: Origin, faults: list[Fault]) -> list[Draft]:
    """Take `stages` or `graph` out of `spec` and return the stages; a file without them has one, without a name."""
    if "stages" in spec and "graph" in spec:
        place = spec.origins["graph"]
        faults.append(Fault(*place.key, place.text, "cannot stand beside stages", "", "keep stages, or graph.nodes"))
    if "stages" in spec:
        value, origin = spec.take("stages")
        spec.pop("graph", None)
        return _list(value, origin, True, faults)
    if "graph" in spec:
        value, origin = spec.take("graph")
        return _list(*_nodes(value, origin, faults), False, faults)
    return [Draft("", (), Mapping(), here)]


def check_order(stages: list[Draft], faults: list[Fault]) -> None:
    """Add a fault for each unknown, own or circular dependency and each name that is given twice."""
    seen: dict[str, Draft] = {}
    for stage in stages:
        if stage.name in seen:
            first = seen[stage.name].origin.key[0]
            faults.append(
                Fault(
                    *stage.origin.key,
                    stage.origin.text,
                    "two stages have the same name",
                    shown(stage.name),
                    f"rename it; the first is on line {first}",
                )
            )
        seen.setdefault(stage.name, stage)
    for stage in stages:
        for name, origin in zip(stage.depends_on, stage.depends_origins, strict=False):
            if name == stage.name:
                faults.append(
                    Fault(*origin.value, origin.text, "a stage cannot depend on itself", shown(name), "remove it")
                )
            elif name not in seen:
                guess = nearest(name, list(seen))
                way_out = f"did you mean {guess}?" if guess else f"stages here: {listing(list(seen))}"
                faults.append(Fault(*origin.value, origin.text, "names no stage of this file", shown(name), way_out))
    told: set[str] = set()
    for stage in stages:
        circle = [] if stage.name in told else _circle(stage.name, seen)
        told.update(circle)
        if circle:
            way = " → ".join([*circle, circle[0]])
            what = "the stages wait for each other in a circle"
            way_out = "remove one of these dependencies"
            faults.append(Fault(*stage.origin.key, stage.origin.text, what, way, way_out))


def in_order(stages: list[Draft]) -> list[Draft]:
    """Return the stages so that each comes after what it depends on, else as written."""
    done: dict[str, Draft] = {}
    waiting = list(stages)
    while waiting:
        ready = next((stage for stage in waiting if all(name in done for name in stage.depends_on)), waiting[0])
        waiting.remove(ready)
        done[ready.name] = ready
    return list(done.values())


def _circle(start: str, stages: dict[str, Draft]) -> list[str]:
    """Return the names of a circle through `start`, each followed by what it waits for; empty when there is none."""
    waited_by: dict[str, str] = {}
    waiting = [start]
    while waiting:
        name = waiting.pop()
        for parent in stages[name].depends_on:
            if parent == start and name != start:
                circle = [name]
                while circle[-1] != start:
                    circle.append(waited_by[circle[-1]])
                return circle[::-1]
            if parent in stages and parent not in waited_by and parent not in {name, start}:
                waited_by[parent] = name
                waiting.append(parent)
    return []


def _nodes(graph: Json, origin: Origin, faults: list[Fault]) -> tuple[Json, Origin]:
    if not isinstance(graph, Mapping):
        return graph, origin
    for key in graph:
        if key != "nodes":
            place = graph.origins[key]
            way_out = "did you mean nodes?" if nearest(key, ["nodes"]) else "graph holds nodes: and nothing else"
            faults.append(Fault(*place.key, place.text, "is not a key of graph", shown(graph[key], 40), way_out))
    return graph.get("nodes"), graph.origins.get("nodes", origin)


def _list(value: Json, origin: Origin, chained: bool, faults: list[Fault]) -> list[Draft]:
    if not isinstance(value, Sequence) or not value:
        faults.append(
            Fault(*origin.value, origin.text, "must be a list of stages", shown(value), "write one `- name: …` a stage")
        )
        return []
    found: list[Draft] = []
    for index, item in enumerate(value):
        place = value.origins[index]
        if not isinstance(item, Mapping):
            faults.append(
                Fault(
                    *place.value,
                    place.text,
                    "must be a map",
                    shown(item),
                    "write `- name: …` with the stage's keys below",
                )
            )
            continue
        previous = found[-1].name if chained and found else None
        found.append(_draft(item, place, index, previous, faults))
    return found


def _draft(item: Mapping, place: Origin, index: int, previous: str | None, faults: list[Fault]) -> Draft:
    item = item.copy()
    name = _name(item, place, index, faults)
    keys = _keys(item, faults)
    given = take_names(keys, "stage", faults)
    if given is not None:
        return Draft(name, tuple(text for text, _ in given), keys, place, tuple(origin for _, origin in given))
    return Draft(name, (previous,) if previous else (), keys, place)


def take_names(keys: Mapping, of_what: str, faults: list[Fault]) -> list[tuple[str, Origin]] | None:
    """Take `dependsOn` (or another spelling of it) out of `keys`: its names with their places, None when not given."""
    written = [key for key in _DEPENDS if key in keys]
    for key in written[1:]:
        _, other = keys.take(key)
        faults.append(Fault(*other.key, other.text, f"means the same as {written[0]}", "", "keep one of them"))
    if not written:
        return None
    value, origin = keys.take(written[0])
    if value is None:
        return None
    if isinstance(value, str):
        return [(value, origin)]
    if not isinstance(value, Sequence):
        what = f"must be a list of {of_what} names"
        faults.append(Fault(*origin.value, origin.text, what, shown(value), "write [a, b]"))
        return []
    found: list[tuple[str, Origin]] = []
    for entry, place in zip(value, value.origins, strict=True):
        if isinstance(entry, (str, int)) and not isinstance(entry, bool):
            found.append((getattr(entry, "text", str(entry)), place))
        else:
            faults.append(
                Fault(*place.value, place.text, f"must be a {of_what}'s name", shown(entry), "write the name")
            )
    return found


def _name(item: Mapping, place: Origin, index: int, faults: list[Fault]) -> str:
    for key in ("name", "id"):
        if key in item:
            value, origin = item.take(key)
            if key == "name" and "id" in item and item["id"] != value:
                other = item.take("id")[1]
                faults.append(Fault(*other.key, other.text, "means the same as name", "", "keep one of them"))
            item.pop("id", None)
            if not isinstance(value, str) or not re.match(STAGE_NAME, value):
                faults.append(
                    Fault(
                        *origin.value,
                        origin.text,
                        "is not a stage name",
                        shown(value),
                        "write letters, digits, - and _, a letter first",
                    )
                )
            return str(value) or f"stage_{index}"
    faults.append(Fault(*place.key, f"{place.text}.name", "is missing", "", "give the stage a name"))
    return f"stage_{index}"


def _keys(item: Mapping, faults: list[Fault]) -> Mapping:
    if "spec" not in item:
        return item
    inner, origin = item.take("spec")
    if inner is None:
        return item
    if not isinstance(inner, Mapping):
        faults.append(
            Fault(*origin.value, origin.text, "must be a map", shown(inner), "write the stage's keys below spec:")
        )
        return item
    for key, value in inner.items():
        if key in item:
            place = inner.origins[key]
            faults.append(
                Fault(
                    *place.key,
                    place.text,
                    "is also given beside the stage's name",
                    shown(value, 40),
                    "keep one of them",
                )
            )
        item.put(key, value, inner.origins[key])
    return item
