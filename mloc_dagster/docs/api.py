"""docs/api.md: every address of REST, from the OpenAPI document."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mloc_dagster.docs.tables import cell, table
from mloc_dagster.spec.base import Json

_HEAD = """# REST reference

Made from the code by `python -m mloc_dagster.docs`. [REST](rest.md) has examples; `GET /api/v1/openapi.json` is the
same as an OpenAPI document. Problems are `application/problem+json`.
"""


def api_page() -> str:
    """Return the page."""
    document = _document()
    parts = [_HEAD]
    for path, methods in sorted(document["paths"].items()):
        for method, operation in sorted(methods.items()):
            parts.append(_operation(f"{method.upper()} {path}", operation))
    parts.append("## Shapes\n")
    for name, told in document["components"]["schemas"].items():
        parts.append(_shape(name, told))
    return "\n".join(parts)


def _document() -> Json:
    """The document, of a service that does not serve."""
    from mloc_dagster.definitions.instance import open_instance
    from mloc_dagster.service import openapi
    from mloc_dagster.service.backend import Backend
    from mloc_dagster.service.intake import Intake
    from mloc_dagster.service.web import endpoints_of
    from mloc_dagster.store.home import Home
    from mloc_dagster.usage.table import UsageTable

    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder))
        with open_instance(home) as instance:
            intake, usage = Intake.of_instance(instance), UsageTable.of_instance(instance)
            backend = Backend(instance, home, intake, usage, lambda: None, Path(folder))
            found = openapi.document(endpoints_of(backend))
            intake.close()
    return found


def _operation(title: str, told: Json) -> str:
    rows = [
        (f"`{one['name']}`", one["in"], cell(_kind(one["schema"])), cell(one.get("description", "")))
        for one in told["parameters"]
    ]
    answers = [
        f"{status} `{_name(content['schema'])}`" if (content := _content(answer)) else status
        for status, answer in told["responses"].items()
        if int(status) < 400
    ]
    problems = ", ".join(status for status in told["responses"] if int(status) >= 400)
    takes = ", ".join(f"`{kind}`" for kind in told.get("requestBody", {}).get("content", {}))
    lines = [f"## `{title}`\n", f"{told['summary']} {told['description']}\n"]
    if rows:
        lines.append(table(("Parameter", "In", "Value", "What it means"), rows))
    if takes:
        lines.append(f"Takes {takes}.\n")
    lines.append(f"Answers {'; '.join(answers)}. Problems: {problems}.\n")
    return "\n".join(lines)


def _content(answer: Json) -> Json:
    return next(iter(answer.get("content", {}).values()), None)


def _shape(name: str, told: Json) -> str:
    if "properties" not in told:
        return f"### {name}\n\n{cell(_kind(told))}\n"
    rows = [
        (f"`{key}`", cell(_kind(value)), cell(value.get("description", "")))
        for key, value in told["properties"].items()
    ]
    return f"### {name}\n\n{told.get('description', '')}\n\n{table(('Key', 'Value', 'What it means'), rows)}"


def _name(schema: Json) -> str:
    return schema["$ref"].rpartition("/")[2] if "$ref" in schema else _kind(schema)


def _kind(schema: Json) -> str:
    """The kind of a value, in a few words."""
    if "$ref" in schema:
        return f"[{_name(schema)}](#{_name(schema).lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_kind, schema["anyOf"])))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("format") or schema.get("type") or "anything"
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"mapping to {_kind(schema['additionalProperties'])}"
    found = {"string": "text", "object": "mapping"}.get(str(kind), str(kind))
    if "default" in schema:
        found += f" (`{schema['default']}`)"
    return found
