"""Checks of a stage's data: it has some, each source is whole, the split can be read."""

from __future__ import annotations

from collections.abc import Iterator

from mloc_dagster.spec import references as refs
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.data import InputSource
from mloc_dagster.spec.faults import Fault, shown
from mloc_dagster.spec.slices import SliceError, parse_slice
from mloc_dagster.spec.task_types import TaskType
from mloc_dagster.spec.taskfile import Stage
from mloc_dagster.spec.tree import Mapping, Origin, path_text
from mloc_dagster.spec.typed import origin_at

_NEEDS = {"dataset": "url", "list": "items", "graph_template": "template", "jsonl": "jsonl", "static": "task"}
_SOURCE_NEEDS = {
    "manual": "questions",
    "dataset": "dataset_config",
    "file": "file_path",
    "previous_stage": "stage_output",
}


def data(stage: Stage, tree: Mapping, kind: TaskType, here: Origin) -> Iterator[Fault]:
    """Faults of `spec.data` and of the other places that hold prompts; `here` is the place of the whole stage."""
    if kind.needs_data and not stage.is_deferred("data") and not has_data(stage, kind.trains):
        ways = (
            "data.jsonl, data.dataset_name, data.prompts or data.preferences"
            if kind.trains
            else "data (type: list, dataset or jsonl), inference.prompts, query or task"
        )
        what = f"is missing, and taskType {kind.name} needs data"
        yield Fault(*here.key, path_text((*here.path, "data")), what, "", f"add {ways}")
    yield from _type(stage, tree)
    yield from _split(stage, tree)
    yield from _list(stage, tree)
    yield from _files(stage, tree)
    yield from _template(stage, tree)
    yield from _inputs(stage, tree)


def has_data(stage: Stage, trains: bool) -> bool:
    """Whether the stage names rows (of training) or prompts."""
    data, spec = stage.spec.data, stage.spec
    common = (data.jsonl, data.dataset_name, data.prompts, data.url)
    rows = (data.source, data.preferences)
    prompts = (
        data.items,
        data.template,
        data.task,
        data.input_sources,
        spec.inference.prompts,
        spec.query,
        spec.task,
        spec.rag.queries,
    )
    return any(value is not None for value in (*common, *(rows if trains else prompts)))


def _at(tree: Mapping, *path: str | int) -> Origin:
    place = origin_at(tree, path)
    assert place is not None, path
    return place


def _type(stage: Stage, tree: Mapping) -> Iterator[Fault]:
    data = stage.spec.data
    key = _NEEDS.get(data.type or "")
    if key is None or getattr(data, key) is not None or stage.is_deferred(f"data.{key}"):
        return
    if data.type == "dataset" and data.dataset_name is not None:
        return
    place = _at(tree, "data", "type")
    what = f"is missing, and data.type {data.type} needs it"
    yield Fault(*place.value, path_text((*place.path[:-1], key)), what, "", f"add {key}")


def _split(stage: Stage, tree: Mapping) -> Iterator[Fault]:
    for path, split in _splits(stage):
        if refs.has_reference(split):
            continue
        try:
            parse_slice(split)
        except SliceError as error:
            place = _at(tree, *path)
            what, _, way_out = str(error).partition("; ")
            yield Fault(*place.value, place.text, what, shown(split), way_out)


def _splits(stage: Stage) -> Iterator[tuple[tuple[str, ...], str]]:
    yield ("data", "split"), stage.spec.data.split
    for name, source in _sources(stage):
        if source.dataset_config:
            yield ("data", "input_sources", name, "dataset_config", "split"), source.dataset_config.split


def _sources(stage: Stage) -> Iterator[tuple[str, InputSource]]:
    sources = stage.spec.data.input_sources
    for name in ("queries", "contexts", "initial_answers"):
        source = getattr(sources, name, None)
        if source is not None:
            yield name, source


def _list(stage: Stage, tree: Mapping) -> Iterator[Fault]:
    data = stage.spec.data
    for key, values in (("items", data.items), ("prompts", data.prompts)):
        if values == []:
            place = _at(tree, "data", key)
            yield Fault(*place.value, place.text, "is an empty list", "[]", "write at least one")
    if data.items and data.metadata and len(data.items) != len(data.metadata):
        place = _at(tree, "data", "metadata")
        what = f"has {len(data.metadata)} entries for {len(data.items)} items"
        yield Fault(*place.value, place.text, what, "", "give one entry an item, in the same order")


def _files(stage: Stage, tree: Mapping) -> Iterator[Fault]:
    jsonl, source = stage.spec.data.jsonl, stage.spec.data.source
    if jsonl and not any((jsonl.path, jsonl.url, jsonl.task_id)) and not stage.is_deferred("data.jsonl"):
        place = _at(tree, "data", "jsonl")
        yield Fault(*place.key, place.text, "names no file", "", "add path, taskId or url")
    if source and source.type == "s3" and not source.bucket and "://" not in source.path:
        place = _at(tree, "data", "source", "path")
        way_out = "add bucket, or write s3://bucket/key"
        yield Fault(*place.value, place.text, "an s3 source needs a bucket", shown(source.path), way_out)


def _template(stage: Stage, tree: Mapping) -> Iterator[Fault]:
    template = stage.spec.data.template
    for index, column in enumerate(template.columns if template else []):
        if column.expr is None and column.node is None and not stage.is_deferred("data.template"):
            place = _at(tree, "data", "template", "columns", index)
            yield Fault(*place.value, place.text, "shows nothing", "", "add expr: stage.result.…, or node and path")
    if template and not template.columns and template.text is None and not stage.is_deferred("data.template"):
        place = _at(tree, "data", "template")
        yield Fault(*place.key, place.text, "has neither columns nor text", "", "add columns: [{label, expr}]")


def _inputs(stage: Stage, tree: Mapping) -> Iterator[Fault]:
    sources = stage.spec.data.input_sources
    if sources and sources.queries is None and not stage.is_deferred("data.input_sources"):
        place = _at(tree, "data", "input_sources")
        yield Fault(
            *place.key, f"{place.text}.queries", "is missing", "", "add queries: {source: manual, questions: […]}"
        )
    for name, source in _sources(stage):
        key = _SOURCE_NEEDS[source.source]
        value: Json = getattr(source, key)
        if not value and not stage.is_deferred(f"data.input_sources.{name}"):
            place = _at(tree, "data", "input_sources", name)
            yield Fault(
                *place.key, f"{place.text}.{key}", f"is missing, and source {source.source} needs it", "", f"add {key}"
            )
