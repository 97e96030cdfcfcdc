"""docs/tasks.md: every key of a task file, from its JSON Schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from mloc_dagster.docs.tables import cell, table
from mloc_dagster.spec import task_types
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.schema import json_schema

_SAME = re.compile(r"The same as (\w+)\.")
_WRITTEN_ANYHOW = ("Reference", "NumberText", "TruthText")
"""What may stand for a number or a truth value; not told at each key."""
_WHOLE = ("Spec", "StageSpec")
"""Both have the keys of a stage; they are one section."""
_HEAD = """# Task reference

Made from the code by `python -m mloc_dagster.docs`. [The README](../README.md) shows files; `mloc schema` prints the
same as a JSON Schema.

A key's other spellings stand beside it. Numbers and truth values may be in quotes; every value may be a reference,
`${stage.result.path}` or `${NAME}`. A key that a task type does not use is named in a warning, a key that
there is not is refused with the nearest one.
"""


def tasks_page() -> str:
    """Return the page."""
    schema = json_schema()
    definitions: dict[str, Json] = schema["$defs"]
    kinds = sorted(task_types.known().values(), key=lambda kind: kind.name)
    top = {key: schema["properties"][key] for key in ("apiVersion", "kind", "metadata", "spec")}
    parts = [
        _HEAD,
        "## Task types\n\n" + table(("taskType", "What it does"), [(f"`{one.name}`", one.summary) for one in kinds]),
        "## The file\n\n" + _properties(top),
    ]
    for name in _order(definitions):
        told = definitions[name]
        if told.get("type") != "object" or name == "StageSpec":
            continue
        parts.append(f"## {_title(name)}\n\n{told.get('description', '')}\n\n{_properties(_own(name, definitions))}")
    return "\n".join(parts)


def _own(name: str, definitions: dict[str, Json]) -> dict[str, Json]:
    """Keys of a section; of a stage, those that a task does not have."""
    keys: dict[str, Json] = definitions[name]["properties"]
    others = definitions["StageSpec"]["properties"] if name == "Stage" else {}
    return {key: told for key, told in keys.items() if key not in others}


def _order(definitions: dict[str, Json]) -> Iterator[str]:
    """Names of sections as they are met from the top."""
    waiting, seen = ["Metadata", "Spec"], set[str]()
    while waiting:
        name = waiting.pop(0)
        if name in seen or name not in definitions:
            continue
        seen.add(name)
        yield name
        waiting.extend(re.findall(r"'#/\$defs/(\w+)'", str(definitions[name])))


def _title(name: str) -> str:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return "The task and its stages" if name in _WHOLE else words[0] + words[1:].lower()


def _properties(properties: dict[str, Json]) -> str:
    others: dict[str, list[str]] = {}
    plain: list[str] = []
    rows: list[tuple[str, str, str, str]] = []
    for name, told in properties.items():
        same = _SAME.fullmatch(told.get("description", ""))
        if same and same[1] in properties:
            others.setdefault(same[1], []).append(name)
        elif not told:
            plain.append(name)
    for name, told in properties.items():
        same = _SAME.fullmatch(told.get("description", ""))
        if not told or (same and same[1] in properties):
            continue
        spelled = "".join(f", `{other}`" for other in others.get(name, ()))
        default = told.get("default")
        shown = (
            f"`{cell(json.dumps(default, ensure_ascii=False))}`"
            if isinstance(default, bool | int | float | str)
            else ""
        )
        rows.append((f"`{name}`{spelled}", cell(" or ".join(_types(told))), shown, cell(told.get("description", ""))))
    found = table(("Key", "Value", "Default", "What it means"), rows)
    if plain:
        found += f"\nPassed on as they are: {', '.join(f'`{name}`' for name in plain)}.\n"
    return found


def _types(told: Json) -> list[str]:
    if "anyOf" in told:
        return list(dict.fromkeys(word for way in told["anyOf"] for word in _types(way)))
    if "$ref" in told:
        name = told["$ref"].rpartition("/")[2]
        anchor = _title(name).lower().replace(" ", "-")
        return [] if name in _WRITTEN_ANYHOW else [f"[{_title(name).lower()}](#{anchor})"]
    if "enum" in told:
        return _choices(told["enum"])
    if "const" in told:
        return [f"`{told['const']}`"]
    kinds = told.get("type", [])
    found: list[str] = []
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if kind == "array":
            inner = " or ".join(_types(told.get("items", {})))
            found.append(f"list of {inner}" if inner else "list")
        elif kind == "object":
            found.append("mapping")
        elif kind != "null":
            found.append({"string": "text", "boolean": "true or false"}.get(kind, kind))
    return found


def _choices(values: Iterable[Json]) -> list[str]:
    return [f"`{value}`" for value in values if value is not None and value not in (0, 1)]
