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
TASK_KEYS = ("stages", "graph", "workflow_config", "schedule", "triggers")
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


def split(tree: Mapping, faults: list[Fault]) -> tuple[Mapping, Mapping | None, Origin]:
    """Return (metadata, spec, place of the spec) of a document; the short form has its spec at the top level.

    The spec is None when there is none, which is a fault.
    """
    start = Origin((), (1, 1), (1, 1))
    tree = _with_version(tree, faults)
    _kind(tree, faults)
    metadata = _map_at(tree, "metadata", faults) or Mapping()
    if "spec" in tree:
        faults.extend(_misplaced(tree, key) for key in tree if key not in TOP_KEYS)
        return metadata, _map_at(tree, "spec", faults), tree.origins["spec"]
    if not _is_short_form(tree):
        faults.append(_no_spec(tree, start))
        return metadata, None, start
    spec = Mapping()
    for key, value in tree.items():
        if key not in TOP_KEYS:
            spec.put(key, value, tree.origins[key])
    return metadata, spec, start


def _with_version(tree: Mapping, faults: list[Fault]) -> Mapping:
    """Check `apiVersion`, which the short form may leave out; a misspelt one is a fault and is taken out."""
    if "apiVersion" in tree:
        if tree["apiVersion"] != API_VERSION:
            place, what = tree.origins["apiVersion"], "is not a version that this release reads"
            faults.append(Fault(*place.value, place.text, what, shown(tree["apiVersion"]), f"write {API_VERSION}"))
        return tree
    guess = next((key for key in tree if nearest(key, ["apiVersion"])), None)
    if guess:
        tree = tree.copy()
        value, place = tree.take(guess)
        what, way_out = "is not a key of the top level", "did you mean apiVersion?"
        faults.append(Fault(*place.key, place.text, what, shown(value), way_out))
    elif "spec" in tree or not _is_short_form(tree):
        faults.append(Fault(1, 1, "apiVersion", "is missing", "", f"write apiVersion: {API_VERSION}"))
    return tree


def _kind(tree: Mapping, faults: list[Fault]) -> None:
    kind = tree.get("kind")
    if kind is not None and not isinstance(kind, str):
        place = tree.origins["kind"]
        way_out = "write a label such as InferenceTask"
        faults.append(Fault(*place.value, "kind", "must be text", shown(kind), way_out))


def _no_spec(tree: Mapping, start: Origin) -> Fault:
    guess = next((key for key in tree if key not in TOP_KEYS and nearest(key, ["spec"])), None)
    if guess:
        place = tree.origins[guess]
        what = "is not a key of the top level"
        return Fault(*place.key, place.text, what, shown(tree[guess], 40), "did you mean spec?")
    way_out = "add spec: with a taskType, or write taskType at the top level"
    return Fault(*start.key, "spec", "is missing", "", way_out)


def _is_short_form(tree: Mapping) -> bool:
    return any(key in tree for key in ("taskType", "task_type", "stages", "graph"))


def _map_at(tree: Mapping, key: str, faults: list[Fault]) -> Mapping | None:
    value = tree.get(key)
    if isinstance(value, Mapping):
        return value
    place = tree.origins.get(key)
    if place and value is not None:
        way_out = "write a map: key: value lines, indented"
        faults.append(Fault(*place.value, key, "must be a map", shown(value), way_out))
    elif place and key == "spec":
        faults.append(Fault(*place.key, key, "is empty", "", "add a taskType"))
    return None


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
