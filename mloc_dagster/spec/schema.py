"""The JSON Schema of a task file (draft 2020-12), for completion and checks in an editor.

It is looser than the loader: what the loader accepts it accepts too, but not the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from pydantic.json_schema import models_json_schema

from mloc_dagster.spec import dialects, field_tables, task_types
from mloc_dagster.spec.agent import Agent
from mloc_dagster.spec.base import Json, Section
from mloc_dagster.spec.canonical import options, spellings
from mloc_dagster.spec.composition import STAGE_NAME
from mloc_dagster.spec.data import Data, Jsonl
from mloc_dagster.spec.document import API_VERSION, TOP_KEYS, Metadata
from mloc_dagster.spec.inference import Inference
from mloc_dagster.spec.model import Model, Vllm
from mloc_dagster.spec.resources import Hardware
from mloc_dagster.spec.retrieval import DocumentSource, Rag, Search, VectorStore
from mloc_dagster.spec.schedule import Schedule, Triggers
from mloc_dagster.spec.stage import StageSpec
from mloc_dagster.spec.training import Generation, Training
from mloc_dagster.spec.workflow import WorkflowConfig

Schema = dict[str, Json]

_REFERENCE: Schema = {"$ref": "#/$defs/Reference"}
_NUMBER_TEXT: Schema = {"$ref": "#/$defs/NumberText"}
_NULL: Schema = {"type": "null"}
_TEXT: Schema = {"type": ["string", "number"]}
_NAMES: Schema = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}, _NULL]}
_COMMON: dict[str, Schema] = {
    "Reference": {
        "type": "string",
        "pattern": r"\$\{[^{}]*\}",
        "description": "${stage.result.path[0].field}, or ${NAME} for an environment variable where the step runs.",
    },
    "NumberText": {
        "type": "string",
        "pattern": r"^\s*[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?\s*$",
        "description": "A number in quotes.",
    },
    "TruthText": {
        "type": "string",
        "pattern": r"^([tTfFyYnN01]|[nN][oO]|[oO]([nN]|[fF][fF])|[yY][eE][sS]|[tT][rR][uU][eE]|[fF][aA][lL][sS][eE])$",
        "description": "yes, no, on or off.",
    },
}
_KEPT = ("description", "default", "deprecated")
_SHORTHAND: dict[tuple[type[Section], str], Schema] = {
    (StageSpec, "model"): _TEXT,
    (StageSpec, "reward_model"): _TEXT,
    (StageSpec, "data"): {"type": "array"},
    (Model, "source"): _TEXT,
    (Hardware, "gpu"): {"type": ["string", "integer"]},
    (Data, "jsonl"): _TEXT,
    (Data, "template"): _TEXT,
    (Rag, "embedding"): _TEXT,
    (Search, "rerank_model"): _TEXT,
    (Agent, "model"): _TEXT,
}
"""What may stand for a section, besides the section itself."""


def json_schema() -> Schema:
    """Return the schema of a whole task file, in all dialects and in the short form."""
    sections = {section.__name__: section for section in _sections()}
    _, generated = models_json_schema(
        [(s, "validation") for s in (StageSpec, Metadata, WorkflowConfig, Schedule, Triggers)]
    )
    definitions = _COMMON | {
        name: _definition(sections[name], raw) for name, raw in sorted(generated["$defs"].items()) if name in sections
    }
    for name, extra in _dialect_properties(definitions).items():
        definitions[name]["properties"] = extra | definitions[name]["properties"]
    definitions |= _dialect_definitions(definitions)
    _stage_shapes(definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"A task file ({API_VERSION})",
        "description": "One pipeline of one or more stages; short files may put taskType at the top level.",
        "type": "object",
        "properties": _top(definitions),
        "additionalProperties": False,
        "if": {"required": ["spec"]},
        "then": {"required": ["apiVersion"], "propertyNames": {"enum": list(TOP_KEYS)}},
        "else": {"anyOf": [{"required": [key]} for key in ("taskType", "task_type", "stages", "graph")]},
        "$defs": dict(sorted(definitions.items())),
    }


def _sections() -> Iterator[type[Section]]:
    waiting = [Section]
    while waiting:
        section = waiting.pop()
        waiting.extend(inner for inner in section.__subclasses__() if inner.__module__.startswith("mloc_dagster.spec."))
        if section is not Section:
            yield section


def _definition(section: type[Section], raw: Schema) -> Schema:
    properties: dict[str, Schema] = {}
    for spelling, name in spellings(section).items():
        properties[spelling] = _property(section, name, raw["properties"][name])
        if spelling != name:
            properties[spelling] = {**properties[spelling], "description": f"The same as {name}."}
    if section is Training:
        properties |= {name: {} for name in sorted(field_tables.trl()) if name not in properties}
    if section is Vllm:
        properties |= {name: {} for name in sorted(field_tables.vllm()) if name not in properties}
    is_open = section.model_config.get("extra") == "allow" and section is not Training
    is_open = is_open and not (section is Vllm and field_tables.vllm())
    return {
        "type": "object",
        "description": raw.get("description", ""),
        "properties": properties,
        "additionalProperties": is_open,
    }


def _property(section: type[Section], name: str, raw: Schema) -> Schema:
    kept = {key: raw[key] for key in _KEPT if key in raw}
    inner = next(_inner_sections(section, name), None)
    if inner and inner.__doc__:
        kept.setdefault("description", inner.__doc__.strip().split("\n")[0])
    if section is StageSpec and name == "task_type":
        kinds = {kind.name: kind.summary for kind in task_types.known().values()}
        told = "; ".join(f"{kind}: {summary}" for kind, summary in sorted(kinds.items()))
        return {"description": f"What the stage does. {told}.", "enum": [*sorted(kinds), None]}
    if section is StageSpec and name == "depends_on":
        return {"description": "Names of the stages (of the task: other tasks) that must be done first.", **_NAMES}
    ways = _relaxed(raw)
    if not ways:
        return kept
    more = _SHORTHAND.get((section, name))
    return {**kept, "anyOf": _without_twins([*ways, *([more] if more else []), _REFERENCE, _NULL])}


def _inner_sections(section: type[Section], name: str) -> Iterator[type[Section]]:
    for option in options(section.model_fields[name].annotation):
        for inner in (option, *get_args(option)):
            if isinstance(inner, type) and issubclass(inner, Section):
                yield inner


def _relaxed(raw: Schema) -> list[Schema]:
    """Return the ways in which a value may be written; empty when anything goes."""
    inner = raw.get("anyOf") or raw.get("oneOf")
    if inner:
        ways = [_relaxed(option) for option in inner]
        return [way for group in ways for way in group] if all(ways) else []
    if "$ref" in raw:
        return [{"$ref": raw["$ref"]}]
    plain = {key: value for key, value in raw.items() if key not in {"title", *_KEPT}}
    match plain.get("type"):
        case "integer" | "number":
            return [plain, _NUMBER_TEXT]
        case "boolean":
            return [plain, {"enum": [0, 1]}, {"$ref": "#/$defs/TruthText"}]
        case "string" if "enum" not in plain and "const" not in plain:
            return [{**plain, "type": ["string", "number"]}]
        case "array":
            items = _relaxed(_of(plain, "items"))
            return [{"type": "array", "items": {"anyOf": [*items, _REFERENCE]} if items else {}}]
        case "object":
            values = _relaxed(_of(plain, "additionalProperties"))
            return [{"type": "object", "additionalProperties": {"anyOf": [*values, _REFERENCE]} if values else True}]
    return [plain] if plain else []


def _of(plain: Schema, key: str) -> Schema:
    inner = plain.get(key)
    return inner if isinstance(inner, dict) else {}


def _without_twins(ways: list[Schema]) -> list[Schema]:
    kept: list[Schema] = []
    for way in ways:
        if way not in kept:
            kept.append(way)
    return kept


def _dialect_properties(definitions: dict[str, Schema]) -> dict[str, dict[str, Schema]]:
    """Return the further keys of the older and shorter dialects, by section."""
    jsonl = definitions[Jsonl.__name__]["properties"]
    moved = {key: _at(definitions, Rag, path) for key, path in dialects.RAG_MOVES.items()}
    nested = {key: _told(f"The keys of data, of type {key}.", "Data") for key in dialects.DATA_HOLDERS}
    profile = {"description": "Name of an agent profile.", "anyOf": [_TEXT, _NULL]}
    return {
        "Data": {
            **jsonl,
            **nested,
            "jsonl_path": {"description": "The same as jsonl.path.", "anyOf": [_TEXT, _NULL]},
        },
        "Rag": moved,
        "StageSpec": {
            "hyperparameters": _told("Arguments of the older dialect.", "Hyperparameters"),
            "dataset": {"description": "The data set, older dialect.", "anyOf": [_TEXT, *_or_null("OlderDataset")]},
            **{name: _told("The same as rag.", "Rag") for name in dialects.RAG_SECTIONS},
            "qdrant": _told("The same as rag.vector_store, of type qdrant.", VectorStore.__name__),
            "agent_inference": _told("The same as agent.", "Agent"),
            **dict.fromkeys(dialects.PROFILE_KEYS, profile),
        },
    }


def _dialect_definitions(definitions: dict[str, Schema]) -> dict[str, Schema]:
    flat = {key: _at(definitions, StageSpec, path) for key, path in dialects.HYPERPARAMETERS.items()}
    arguments = {key: definitions["Agent"]["properties"][key] for key in ("timeout", "instructions")}
    for section in (Generation, Inference, Training):
        arguments |= definitions[section.__name__]["properties"]
    source = {key: _TEXT for key in ("type", "identifier", "split", "revision", "config", "name", "path", "bucket")}
    source = definitions[DocumentSource.__name__]["properties"] | source
    before = {key: _at(definitions, StageSpec, path) for key, path in dialects.PREPROCESSING.items()}
    return {
        "Hyperparameters": _closed(
            "Trainer, sampling, rag and agent arguments of the older dialect.", arguments | flat
        ),
        "OlderDataset": _closed(
            "The data set of the older dialect.",
            {
                "source": {"anyOf": [_closed("Where the rows are.", source), _NULL]},
                "preprocessing": {"anyOf": [_closed("What happens to the rows first.", before), _NULL]},
            },
        ),
    }


def _at(definitions: dict[str, Schema], section: type[Section], path: tuple[str, ...]) -> Schema:
    """Return the property that a path of keys leads to."""
    for name in path[:-1]:
        section = next(_inner_sections(section, name))
    return definitions[section.__name__]["properties"][path[-1]]


def _closed(description: str, properties: dict[str, Schema]) -> Schema:
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "additionalProperties": False,
    }


def _told(description: str, name: str) -> Schema:
    return {"description": description, "anyOf": _or_null(name)}


def _or_null(name: str) -> list[Schema]:
    return [{"$ref": f"#/$defs/{name}"}, _NULL]


def _stage_shapes(definitions: dict[str, Schema]) -> None:
    """Add `Stage` (a stage with its keys inline or below `spec`) and `Spec` (a whole task)."""
    keys = definitions["StageSpec"]["properties"]
    name = {"type": "string", "pattern": STAGE_NAME, "description": "The stage's name, by which references call it."}
    stage = {"name": name, "id": name, "spec": _told("The keys of the stage.", "StageSpec"), **keys}
    stages = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/Stage"}}
    named = {"anyOf": [{"required": ["name"]}, {"required": ["id"]}]}
    definitions["Stage"] = {**_closed("One stage; its keys go over those of the task.", stage), **named}
    graph = _closed("Stages that wait only for what dependsOn names.", {"nodes": stages})
    whole = {
        "stages": {
            "description": "Stages, each waiting for the one before it unless dependsOn says otherwise.",
            **stages,
        },
        "graph": {**graph, "required": ["nodes"]},
        "workflow_config": _told("How the stages behave together.", "WorkflowConfig"),
        "schedule": {
            "description": "When the task runs by itself.",
            "anyOf": [*_or_null("Schedule"), {"type": "string", "description": "Times as cron reads them, in UTC."}],
        },
        "triggers": _told("What starts the task when it comes.", "Triggers"),
        **keys,
    }
    definitions["Spec"] = {**_closed("What the task does.", whole), "not": {"required": ["stages", "graph"]}}


def _top(definitions: dict[str, Schema]) -> dict[str, Schema]:
    return {
        "apiVersion": {"const": API_VERSION, "description": "The version of the task language."},
        "kind": {"type": ["string", "null"], "description": "A label such as InferenceTask."},
        "metadata": _told("Whose the task is.", "Metadata"),
        "spec": {"$ref": "#/$defs/Spec"},
        **definitions["Spec"]["properties"],
    }
