"""Checks across keys of one stage: its type, model, adapters, training arguments, exports, destination."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mloc_dagster.spec import (
    agent_checks,
    data_checks,
    evaluation_checks,
    field_tables,
    rag_checks,
    serve_checks,
    task_types,
)
from mloc_dagster.spec import references as refs
from mloc_dagster.spec.base import Json, Section
from mloc_dagster.spec.faults import Fault, listing, nearest, shown
from mloc_dagster.spec.model import Vllm
from mloc_dagster.spec.output import OWN_HEADERS, Destination
from mloc_dagster.spec.taskfile import Stage
from mloc_dagster.spec.training import Training
from mloc_dagster.spec.tree import Mapping, Origin, path_text
from mloc_dagster.spec.typed import origin_at, validate

_WHOLE_NAME = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")


def task_type(tree: Mapping, here: Origin) -> Iterator[Fault]:
    """Faults of a stage's `taskType`: missing or unknown."""
    kinds = sorted(task_types.known())
    if "task_type" not in tree:
        yield Fault(*here.key, path_text((*here.path, "taskType")), "is missing", "", f"write one of {listing(kinds)}")
        return
    value, origin = tree["task_type"], tree.origins["task_type"]
    if isinstance(value, (dict, list, bool)):
        return  # told as a type fault
    value = str(value)
    if value not in kinds:
        guess = nearest(value, kinds)
        way_out = f"did you mean {guess}?" if guess else f"write one of {listing(kinds)}"
        yield Fault(*origin.value, origin.text, "is not a task type", shown(value), way_out)


def stage(stage: Stage, tree: Mapping, here: Origin) -> Iterator[Fault]:
    """Faults that need more than one key of a stage to see; `here` is the place of the stage as a whole."""
    kind = task_types.known().get(stage.spec.task_type)
    if kind is None:
        return
    yield from _model(stage, tree, kind, here)
    yield from data_checks.data(stage, tree, kind, here)
    yield from evaluation_checks.evaluation(stage, tree, kind, here)
    yield from rag_checks.rag(stage, tree, here)
    yield from agent_checks.agent(stage, tree, here)
    yield from serve_checks.serve(stage, tree)
    yield from _alternatives(stage, tree)
    yield from _exports(stage, tree)
    yield from _destination(stage, tree)
    yield from _references_in_output(stage, tree)
    yield from _plugin(tree, kind)


def _at(tree: Mapping, *path: str | int) -> Origin:
    place = origin_at(tree, path)
    assert place is not None, path
    return place


def _model(stage: Stage, tree: Mapping, kind: task_types.TaskType, here: Origin) -> Iterator[Fault]:
    model = stage.spec.model
    given = model.source or stage.spec.checkpoint.load or stage.is_deferred("model") or stage.is_deferred("checkpoint")
    if kind.needs_model and not given:
        what = f"is missing, and taskType {kind.name} needs a model"
        yield Fault(*here.key, path_text((*here.path, "model")), what, "", "add model.source.identifier")
    if not kind.trains or model.adapter is None:
        return
    adapter, place = model.adapter.type, _at(tree, "model", "adapter", "type")
    if kind.name == "lora_sft" and adapter == "full":
        what = "lora_sft trains an adapter, full does not"
        yield Fault(*place.value, place.text, what, shown(adapter), "write taskType: sft")


def _alternatives(stage: Stage, tree: Mapping) -> Iterator[Fault]:
    for index, adapter in enumerate(stage.spec.model.adapters):
        if not any((adapter.path, adapter.task_id, adapter.url, stage.is_deferred(f"model.adapters.{index}"))):
            place = _at(tree, "model", "adapters", index)
            yield Fault(*place.value, place.text, "names no adapter", "", "add path, taskId or url")
    load = stage.spec.checkpoint.load
    if load and not any((load.path, load.task_id, load.url, stage.is_deferred("checkpoint.load"))):
        place = _at(tree, "checkpoint", "load")
        yield Fault(*place.key, place.text, "names no checkpoint", "", "add path, taskId or url")


def pass_through(tree: Mapping) -> Iterator[Fault]:
    """Faults of keys that would be handed to a trainer or an engine which does not know them."""
    kind = task_types.known().get(str(tree.get("task_type")))
    config_class = kind.config_class if kind and kind.trains else None
    of_what = f"a field of {field_tables.owner(config_class)}" if config_class else "a field of any TRL config class"
    known = field_tables.trl(config_class)
    yield from _strangers(tree, ("training",), Training, known, f"is neither ours nor {of_what}")
    if field_tables.vllm():
        what = "is not an engine argument of vLLM"
        yield from _strangers(tree, ("model", "vllm"), Vllm, field_tables.vllm(), what)


def _strangers(
    tree: Mapping, path: tuple[str, ...], section: type[Section], known: frozenset[str], what: str
) -> Iterator[Fault]:
    values: Json = tree
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    choices = sorted({*known, *section.model_fields})
    for key in values if isinstance(values, Mapping) else ():
        if key not in choices:
            origin: Origin = values.origins[key]
            guess = nearest(key, choices)
            way_out = f"did you mean {guess}?" if guess else "remove it"
            yield Fault(*origin.key, origin.text, what, shown(values[key], 40), way_out)


def _exports(stage: Stage, tree: Mapping) -> Iterator[Fault]:
    export = stage.spec.postprocess.jsonl_export
    if export is None:
        return
    if export.path.startswith("/") or ".." in export.path.replace("\\", "/").split("/"):
        place = _at(tree, "postprocess", "jsonl_export", "path")
        way_out = "write a file name such as export.jsonl"
        yield Fault(*place.value, place.text, "must be a path inside the run folder", shown(export.path), way_out)
    if stage.is_deferred("postprocess.jsonl_export.fields"):
        return
    names = list(export.fields)
    for index, name in enumerate(export.required_fields):
        if name not in names:
            place = _at(tree, "postprocess", "jsonl_export", "required_fields", index)
            guess = nearest(name, names)
            way_out = f"did you mean {guess}?" if guess else f"fields: {listing(names)}"
            yield Fault(*place.value, place.text, "is not an exported field", shown(name), way_out)


def _destination(stage: Stage, tree: Mapping) -> Iterator[Fault]:
    destination = stage.spec.output.destination
    if destination is None:
        return
    place = _at(tree, "output", "destination")
    key = {"http": "url", "s3": "bucket", "huggingface": "repo_id"}.get(destination.type)
    if key and not getattr(destination, key) and not stage.is_deferred(f"output.destination.{key}"):
        what = f"is missing, and destination type {destination.type} needs it"
        yield Fault(*place.key, f"{place.text}.{key}", what, "", f"add {key}: …")
    for name, path in (("path", destination.path), ("prefix", destination.prefix)):
        parts = [part for part in (path or "").replace("\\", "/").split("/") if part not in ("", ".")]
        where = _at(tree, "output", "destination", name) if path else place
        if ".." in parts:
            yield Fault(*where.value, where.text, "must stay inside the results folder", shown(path), "remove ..")
        elif path and not parts and destination.type == "local":
            yield Fault(*where.value, where.text, "names no folder", shown(path), "write a name such as my-results")
    url = destination.url or ""
    if destination.type == "http" and url and not url.lower().startswith(("http://", "https://", "${")):
        where = _at(tree, "output", "destination", "url")
        yield Fault(*where.value, where.text, "is no web address", shown(url), "write http://… or https://…")
    yield from _signed(destination, tree)


def _signed(destination: Destination, tree: Mapping) -> Iterator[Fault]:
    """Faults of the secret, which no file may hold, and of headers that are the delivery's own."""
    secret = destination.signing_secret
    if secret is not None and not _WHOLE_NAME.fullmatch(secret):
        where = _at(tree, "output", "destination", "signing_secret")
        yield Fault(*where.value, where.text, "is no name of the environment", "***", "export it, and write ${NAME}")
    if secret is not None and destination.type != "http":
        where = _at(tree, "output", "destination", "signing_secret")
        what = f"signs HTTP requests, and destination type {destination.type} makes none of its own"
        yield Fault(*where.key, where.text, what, "", "remove it")
    for name in destination.headers:
        if name.lower() in OWN_HEADERS:
            where = _at(tree, "output", "destination", "headers", name)
            what = "is a header that every delivery sets itself"
            yield Fault(*where.key, where.text, what, "", "remove it; docs/deliveries.md tells what it holds")


def _references_in_output(stage: Stage, tree: Mapping) -> Iterator[Fault]:
    """Faults of references where a delivery reads none: it knows the environment, in texts, and no results."""
    for path, body in refs.find({"output": tree.get("output")}):
        place, deferred = _at(tree, *path), ".".join(map(str, path)) in stage.deferred
        if deferred or path[1] != "destination":
            way_out = "write the value itself"
            yield Fault(*place.value, place.text, "cannot hold a reference", f"${{{body:.80}}}", way_out)
        elif "." in body:
            what, way_out = "cannot use the result of a stage", "write it out, or name the environment: ${NAME}"
            yield Fault(*place.value, place.text, what, f"${{{body:.80}}}", way_out)


def _plugin(tree: Mapping, kind: task_types.TaskType) -> Iterator[Fault]:
    if kind.section is not None:
        plugin = tree.get("plugin")
        place = tree.origins.get("plugin", tree.origins["task_type"])
        yield from validate(plugin if isinstance(plugin, Mapping) else Mapping(), kind.section, place)[2]
