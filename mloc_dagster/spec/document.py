"""The outermost level of a task file: version, kind, metadata, and where its `spec` stands."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mloc_dagster.spec.base import Json, Section
from mloc_dagster.spec.canonical import spellings
from mloc_dagster.spec.faults import Fault, nearest, shown
from mloc_dagster.spec.stage import StageSpec
from mloc_dagster.spec.tree import Mapping, Origin

API_VERSION = "mloc/v1"
TOP_KEYS = ("apiVersion", "kind", "metadata", "spec")
TASK_KEYS = ("stages", "graph", "workflow_config")
DIALECT_KEYS = (
    "hyperparameters",
    "dataset",
    "rag_indexing",
    "rag_inference",
    "retrieval",
    "qdrant",
    "configName",
    "config_name",
    "agent_inference",
)
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class Metadata(Section):
    """Who the task belongs to."""

    name: Annotated[str | None, Field(pattern=NAME)] = None
    owner: Annotated[str | None, Field(min_length=1, max_length=100)] = None
    project: Annotated[str, Field(pattern=NAME)] = "default"
    annotations: dict[str, Json] = {}


def split(tree: Mapping, faults: list[Fault]) -> tuple[Mapping, Mapping, Origin]:
    """Return (metadata, spec, place of the spec) of a document; the short form has its spec at the top level."""
    start = Origin((), (1, 1), (1, 1))
    _version(tree, faults, start)
    metadata = _map_at(tree, "metadata", faults)
    if "spec" in tree:
        for key in tree:
            if key not in TOP_KEYS:
                faults.append(_misplaced(tree, key))
        return metadata, _map_at(tree, "spec", faults), tree.origins["spec"]
    if not _is_short_form(tree):
        way_out = "add spec: with a taskType, or write taskType at the top level"
        guess = next((key for key in tree if key not in TOP_KEYS and nearest(key, ["spec"])), None)
        at = tree.origins[guess].key if guess else start.key
        faults.append(
            Fault(
                *at, "spec", "is missing", guess or "", f"did you mean spec instead of {guess}?" if guess else way_out
            )
        )
        return metadata, Mapping(), start
    spec = Mapping()
    for key, value in tree.items():
        if key not in TOP_KEYS:
            spec.put(key, value, tree.origins[key])
    return metadata, spec, start


def _version(tree: Mapping, faults: list[Fault], start: Origin) -> None:
    short = "spec" not in tree and _is_short_form(tree)
    if "apiVersion" not in tree:
        guess = next((key for key in tree if nearest(key, ["apiVersion"])), None)
        if guess or not short:
            at = tree.origins[guess].key if guess else start.key
            faults.append(Fault(*at, "apiVersion", "is missing", guess or "", f"write apiVersion: {API_VERSION}"))
    elif tree["apiVersion"] != API_VERSION:
        place = tree.origins["apiVersion"]
        faults.append(
            Fault(
                *place.value,
                "apiVersion",
                "is not a version that this release reads",
                shown(tree["apiVersion"]),
                f"write {API_VERSION}",
            )
        )
    if "kind" in tree and not isinstance(tree["kind"], str):
        place = tree.origins["kind"]
        faults.append(
            Fault(*place.value, "kind", "must be text", shown(tree["kind"]), "write a label such as InferenceTask")
        )


def _is_short_form(tree: Mapping) -> bool:
    return any(key in tree for key in ("taskType", "task_type", "stages", "graph"))


def _map_at(tree: Mapping, key: str, faults: list[Fault]) -> Mapping:
    value = tree.get(key)
    if isinstance(value, Mapping):
        return value
    if value is not None:
        place = tree.origins[key]
        faults.append(
            Fault(*place.value, key, "must be a map", shown(value), "write a map: key: value lines, indented")
        )
    elif key == "spec" and key in tree:
        place = tree.origins[key]
        faults.append(Fault(*place.key, key, "is empty", "", "add a taskType"))
    return Mapping()


def _misplaced(tree: Mapping, key: str) -> Fault:
    place = tree.origins[key]
    inside = {*spellings(StageSpec), *TASK_KEYS, *DIALECT_KEYS}
    guess = nearest(key, TOP_KEYS)
    if key in inside:
        way_out = f"it belongs at spec.{key}"
    elif key in Metadata.model_fields:
        way_out = f"it belongs at metadata.{key}"
    else:
        way_out = f"did you mean {guess}?" if guess else f"keys here: {', '.join(TOP_KEYS)}"
    return Fault(*place.key, place.text, "is not a key of the top level", shown(tree[key], 40), way_out)
