"""The OpenAPI document: made from the endpoints that serve, and the shapes that they answer with."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus

from pydantic import TypeAdapter

from mloc_dagster import __version__
from mloc_dagster.client import shapes
from mloc_dagster.service.endpoint import Endpoint, Parameter
from mloc_dagster.service.problems import MEDIA_TYPE
from mloc_dagster.spec.base import Json

BASE = "/api/v1"
_IN_PATH = re.compile(r"{(\w+)(?::\w+)?}")
_REF = "#/components/schemas/{model}"
_KINDS: dict[str, dict[str, Json]] = {
    "text": {"type": "string"},
    "integer": {"type": "integer"},
    "boolean": {"type": "boolean"},
    "day": {"type": "string", "format": "date"},
    "time": {"type": "string"},
}
_OF_ALL = (401, 403)
"""Problems that every endpoint may answer with."""
_BODIES: dict[str, dict[str, Json]] = {
    "text/yaml": {"schema": {"type": "string"}},
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    "multipart/form-data": {
        "schema": {
            "type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}},
        }
    },
}  # fmt: skip


def document(endpoints: Iterable[Endpoint]) -> dict[str, Json]:
    """Return the document (OpenAPI 3.1)."""
    paths: dict[str, dict[str, Json]] = {}
    schemas: dict[str, Json] = {}
    for endpoint in endpoints:
        path = BASE + _IN_PATH.sub(r"{\1}", endpoint.path)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, schemas)
    _schema(shapes.ProblemDetails, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "MLOC", "version": __version__, "description": (shapes.__doc__ or "").strip()},
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _operation(endpoint: Endpoint, schemas: dict[str, Json]) -> dict[str, Json]:
    told: dict[str, Json] = {
        "operationId": f"{endpoint.method.lower()}{re.sub(r'[^a-z]+', '_', endpoint.path)}".rstrip("_"),
        "summary": endpoint.summary,
        "description": f"Needs a token of the scope {endpoint.scope}.",
        "parameters": [*map(_in_path, _IN_PATH.findall(endpoint.path)), *map(_in_query, endpoint.query)],
        "responses": _responses(endpoint, schemas),
    }
    if endpoint.takes:
        content = {kind: _BODIES.get(kind, {"schema": {"type": "object"}}) for kind in endpoint.takes}
        told["requestBody"] = {"required": True, "content": content}
    return told


def _responses(endpoint: Endpoint, schemas: dict[str, Json]) -> dict[str, Json]:
    body = {"schema": _schema(endpoint.answer, schemas)} if endpoint.answer else {"schema": {"type": "string"}}
    problem = {"content": {MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="ProblemDetails")}}}}
    said = {endpoint.status: "Done.", **endpoint.also}
    found = {str(status): {"description": what, "content": {endpoint.media: body}} for status, what in said.items()}
    if 200 in endpoint.also and "dry_run" in {parameter.name for parameter in endpoint.query}:
        found["200"]["content"] = {endpoint.media: {"schema": {"type": "object"}}}
    for status in sorted({*_OF_ALL, *endpoint.problems}):
        found[str(status)] = {"description": HTTPStatus(status).phrase, **problem}
    return found


def _schema(shape: type, schemas: dict[str, Json]) -> dict[str, Json]:
    made = TypeAdapter(shape).json_schema(ref_template=_REF, mode="serialization")
    schemas.update(made.pop("$defs", {}))
    if "$ref" in made:
        return made
    schemas[shape.__name__] = made
    return {"$ref": _REF.format(model=shape.__name__)}


def _in_path(name: str) -> dict[str, Json]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _in_query(parameter: Parameter) -> dict[str, Json]:
    schema = dict(_KINDS[parameter.kind])
    if parameter.kind == "integer":
        schema |= {"minimum": parameter.least, "maximum": parameter.most}
    if parameter.choices:
        schema["enum"] = list(parameter.choices)
    if parameter.default is not None:
        schema["default"] = parameter.default
    return {"name": parameter.name, "in": "query", "description": parameter.what, "schema": schema}
