"""Checks across keys: task types, references, sources, and keys that nothing reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mloc_dagster.spec import references as refs
from mloc_dagster.spec import task_types, trl_fields
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.composition import Draft
from mloc_dagster.spec.faults import Fault, listing, nearest, shown
from mloc_dagster.spec.slices import SliceError, parse_slice
from mloc_dagster.spec.taskfile import Stage
from mloc_dagster.spec.tree import Mapping, Origin, path_text
from mloc_dagster.spec.tree import Sequence as TreeList
from mloc_dagster.spec.typed import origin_at
from mloc_dagster.spec.workflow import WorkflowConfig

_ENVELOPE = ("task_id", "stage", "worker", "metadata", "received_at", "result")


def task_type(tree: Mapping, here: Origin) -> Iterator[Fault]:
    """Faults of a stage's `taskType`: missing, unknown, or not there yet."""
    kinds = sorted(task_types.known())
    if "task_type" not in tree:
        yield Fault(*here.key, path_text((*here.path, "taskType")), "is missing", "", f"write one of {listing(kinds)}")
        return
    value, origin = tree["task_type"], tree.origins["task_type"]
    if not isinstance(value, str):
        return
    if value in task_types.PLANNED:
        yield Fault(
            *origin.value, origin.text, "this task type is not there yet", shown(value), f"there are {listing(kinds)}"
        )
    elif value not in kinds:
        guess = nearest(value, kinds)
        way_out = f"did you mean {guess}?" if guess else f"write one of {listing(kinds)}"
        yield Fault(*origin.value, origin.text, "is not a task type", shown(value), way_out)


def references(
    trees: dict[str, Mapping], drafts: Sequence[Draft], requires: tuple[str, ...], spec: Mapping
) -> Iterator[Fault]:
    """Faults of every `${...}`: malformed, unknown stage, not an ancestor, or not in an envelope."""
    parents = {draft.name: draft.depends_on for draft in drafts}
    for name, tree in trees.items():
        ancestors = _ancestors(name, parents)
        for path, body in refs.find(tree):
            origin = origin_at(tree, path)
            if origin:
                yield from _reference(body, origin, name, ancestors, parents, requires)
        for node, origin in _template_nodes(tree):
            if node not in ancestors and node not in requires:
                yield _not_an_ancestor(node, origin, name, parents, node)


def _reference(
    body: str,
    origin: Origin,
    stage: str,
    ancestors: set[str],
    parents: dict[str, tuple[str, ...]],
    requires: tuple[str, ...],
) -> Iterator[Fault]:
    try:
        reference = refs.parse(body)
    except refs.BadReference as error:
        what, _, way_out = str(error).partition("; ")
        yield Fault(*origin.value, origin.text, what, f"${{{body}}}"[:80], way_out)
        return
    if reference.is_environment:
        return
    if reference.head not in ancestors and reference.head not in requires:
        yield _not_an_ancestor(reference.head, origin, stage, parents, f"${{{body}}}")
    elif str(reference.path[0]) not in _ENVELOPE:
        guess = nearest(str(reference.path[0]), _ENVELOPE)
        way_out = (
            f"did you mean ${{{reference.head}.{guess}}}?"
            if guess
            else f"write ${{{reference.head}.result.{reference.path[0]}}}"
        )
        yield Fault(*origin.value, origin.text, f"an envelope has no {reference.path[0]!s}", f"${{{body}}}", way_out)


def _not_an_ancestor(head: str, origin: Origin, stage: str, parents: dict[str, tuple[str, ...]], seen: str) -> Fault:
    if head == stage:
        return Fault(*origin.value, origin.text, "a stage cannot use its own result", seen, "name an earlier stage")
    if head in parents:
        way_out = f"add {head} to dependsOn of {stage}"
        return Fault(*origin.value, origin.text, f"{head} does not run before this stage", seen, way_out)
    guess = nearest(head, [name for name in parents if name])
    names = [name for name in parents if name and name != stage]
    way_out = (
        f"did you mean {guess}?"
        if guess
        else (f"stages here: {listing(names)}" if names else "name the task in spec.dependsOn")
    )
    return Fault(*origin.value, origin.text, f"there is no stage {head}", seen, way_out)


def _template_nodes(tree: Mapping) -> Iterator[tuple[str, Origin]]:
    data = tree.get("data")
    if not isinstance(data, Mapping):
        return
    template = data.get("template")
    for column in (template.get("columns") or []) if isinstance(template, Mapping) else []:
        if not isinstance(column, Mapping):
            continue
        node, expr = column.get("node"), column.get("expr")
        if isinstance(node, str):
            yield node, column.origins["node"]
        elif isinstance(expr, str) and "${" not in expr:
            yield expr.partition(".")[0], column.origins["expr"]
    sources = data.get("input_sources")
    for source in sources.values() if isinstance(sources, Mapping) else []:
        if (
            isinstance(source, Mapping)
            and isinstance(source.get("stage_output"), str)
            and "${" not in source["stage_output"]
        ):
            yield source["stage_output"].partition(".")[0], source.origins["stage_output"]


def _ancestors(name: str, parents: dict[str, tuple[str, ...]]) -> set[str]:
    found: set[str] = set()
    waiting = list(parents.get(name, ()))
    while waiting:
        parent = waiting.pop()
        if parent not in found:
            found.add(parent)
            waiting.extend(parents.get(parent, ()))
    return found


def stage(stage: Stage, tree: Mapping) -> Iterator[Fault]:
    """Faults that need more than one key of a stage to see."""
    kind = task_types.known().get(stage.spec.task_type)
    if kind is None:
        return
    here = tree.origins["task_type"]
    yield from _needs(stage, tree, kind, here)
    yield from _data(stage, tree)
    yield from _alternatives(stage, tree)
    yield from _destination(stage, tree)
    yield from _training(stage, tree, kind)
    yield from _exports(stage, tree)
    if kind.section is not None:
        from mloc_dagster.spec.typed import validate

        plugin = tree.get("plugin")
        place = tree.origins.get("plugin", here)
        yield from validate(plugin if isinstance(plugin, Mapping) else Mapping(), kind.section, place)[2]  # pyright: ignore[reportArgumentType]


def _needs(stage: Stage, tree: Mapping, kind: task_types.TaskType, here: Origin) -> Iterator[Fault]:
    spec = stage.spec
    if (
        kind.needs_model
        and spec.model.source is None
        and spec.checkpoint.load is None
        and not _deferred(stage, "model")
    ):
        yield Fault(
            *here.key, "spec.model.source", f"taskType {kind.name} needs a model", "", "add model.source.identifier"
        )
    if kind.needs_data and not _deferred(stage, "data") and not _has_data(stage, kind.trains):
        wanted = (
            "data.jsonl, data.dataset_name or data.prompts"
            if kind.trains
            else "data (type: list, dataset or jsonl), inference.prompts, query or task"
        )
        yield Fault(*here.key, "spec.data", f"taskType {kind.name} needs data and none is given", "", f"add {wanted}")
    if kind.name == "evaluation" and spec.evaluation is None:
        yield Fault(
            *here.key, "spec.evaluation", "is missing", "", "add evaluation.candidates: {name: ${stage.result.items}}"
        )
    if spec.evaluation and spec.evaluation.baseline and spec.evaluation.baseline not in spec.evaluation.candidates:
        place = origin_at(tree, ("evaluation", "baseline")) or here
        names = list(spec.evaluation.candidates)
        yield Fault(
            *place.value,
            place.text,
            "is not a candidate",
            shown(spec.evaluation.baseline),
            f"candidates: {listing(names)}",
        )
    adapter = spec.model.adapter
    if kind.trains and adapter and adapter.type in {"qlora", "adalora"}:
        place = origin_at(tree, ("model", "adapter", "type")) or here
        yield Fault(
            *place.value,
            place.text,
            f"adapter type {adapter.type} is not there yet",
            "",
            "write lora, or full to train all weights",
        )
    if kind.name == "lora_sft" and adapter and adapter.type == "full":
        place = origin_at(tree, ("model", "adapter", "type")) or here
        yield Fault(
            *place.value, place.text, "lora_sft trains an adapter, full does not", "'full'", "write taskType: sft"
        )


def _deferred(stage: Stage, section: str) -> bool:
    return any(dotted == section or dotted.startswith(f"{section}.") for dotted in stage.deferred)


def _has_data(stage: Stage, trains: bool) -> bool:
    data, spec = stage.spec.data, stage.spec
    if trains:
        return any((data.jsonl, data.dataset_name, data.prompts, data.source, data.url))
    prompts = (
        data.items,
        data.prompts,
        data.jsonl,
        data.url,
        data.template,
        data.task,
        data.input_sources,
        spec.inference.prompts,
    )
    return any(value is not None for value in (*prompts, spec.query, spec.task))


def _data(stage: Stage, tree: Mapping) -> Iterator[Fault]:
    data = stage.spec.data
    needs = {"dataset": "url", "list": "items", "graph_template": "template", "jsonl": "jsonl", "static": "task"}
    if data.type and getattr(data, needs[data.type]) is None and not _deferred(stage, f"data.{needs[data.type]}"):
        place = origin_at(tree, ("data", "type"))
        alternative = data.dataset_name if data.type == "dataset" else data.prompts if data.type == "list" else None
        if place and alternative is None:
            key = needs[data.type]
            yield Fault(*place.value, f"spec.data.{key}", f"data.type {data.type} needs {key}", "", f"add data.{key}")
    place = origin_at(tree, ("data", "split"))
    if place and not refs.has_reference(data.split):
        try:
            parse_slice(data.split)
        except SliceError as error:
            what, _, way_out = str(error).partition("; ")
            yield Fault(*place.value, place.text, what, shown(data.split), way_out)
    if data.items is not None and data.metadata is not None and len(data.items) != len(data.metadata):
        place = origin_at(tree, ("data", "metadata"))
        if place:
            what = f"has {len(data.metadata)} entries for {len(data.items)} items"
            yield Fault(*place.value, place.text, what, "", "give one entry an item, in the same order")
    if (
        data.jsonl
        and not any((data.jsonl.path, data.jsonl.url, data.jsonl.task_id))
        and not _deferred(stage, "data.jsonl")
    ):
        place = origin_at(tree, ("data", "jsonl"))
        if place:
            yield Fault(*place.key, place.text, "names no file", "", "add path, taskId or url")
    if data.source and data.source.type == "s3" and not data.source.bucket and "://" not in data.source.path:
        place = origin_at(tree, ("data", "source", "path"))
        if place:
            yield Fault(
                *place.value,
                place.text,
                "an s3 source needs a bucket",
                shown(data.source.path),
                "add bucket, or write s3://bucket/key",
            )
    rag = stage.spec.rag
    if rag.chunk_overlap >= rag.chunk_size and (place := origin_at(tree, ("rag", "chunk_overlap"))):
        yield Fault(
            *place.value,
            place.text,
            f"must be smaller than chunk_size {rag.chunk_size}",
            str(rag.chunk_overlap),
            "write a smaller overlap",
        )


def _alternatives(stage: Stage, tree: Mapping) -> Iterator[Fault]:
    for index, adapter in enumerate(stage.spec.model.adapters):
        prefix = f"model.adapters.{index}."
        if not any((adapter.path, adapter.task_id, adapter.url)) and not any(
            d.startswith(prefix) for d in stage.deferred
        ):
            place = origin_at(tree, ("model", "adapters", index))
            if place:
                yield Fault(*place.value, place.text, "names no adapter", "", "add path, taskId or url")
    load = stage.spec.checkpoint.load
    if load and not any((load.path, load.task_id, load.url)) and not _deferred(stage, "checkpoint.load"):
        place = origin_at(tree, ("checkpoint", "load"))
        if place:
            yield Fault(*place.key, place.text, "names no checkpoint", "", "add path, taskId or url")


def _destination(stage: Stage, tree: Mapping) -> Iterator[Fault]:
    destination = stage.spec.output.destination
    place = origin_at(tree, ("output", "destination"))
    if destination is None or place is None:
        return
    needs = {"http": "url", "s3": "bucket", "huggingface": "repo_id"}
    key = needs.get(destination.type)
    if key and not getattr(destination, key) and not _deferred(stage, f"output.destination.{key}"):
        yield Fault(
            *place.key, f"{place.text}.{key}", f"a {destination.type} destination needs {key}", "", f"add {key}: …"
        )
    if destination.path and ".." in destination.path.replace("\\", "/").split("/"):
        where = origin_at(tree, ("output", "destination", "path")) or place
        yield Fault(
            *where.value, where.text, "must stay inside the results folder", shown(destination.path), "remove .."
        )


def _training(stage: Stage, tree: Mapping, kind: task_types.TaskType) -> Iterator[Fault]:
    extra = stage.spec.training.model_extra or {}
    section = tree.get("training")
    if not isinstance(section, Mapping):
        return
    known = trl_fields.of(kind.config_class)
    for key in extra:
        if kind.trains and key not in known:
            origin = section.origins[key]
            guess = nearest(key, [*known, *type(stage.spec.training).model_fields])
            way_out = f"did you mean {guess}?" if guess else f"see the fields of TRL's {kind.config_class}"
            yield Fault(
                *origin.key,
                origin.text,
                f"is neither ours nor a field of {kind.config_class}",
                shown(extra[key], 40),
                way_out,
            )


def _exports(stage: Stage, tree: Mapping) -> Iterator[Fault]:
    export = stage.spec.postprocess.jsonl_export
    if export is None:
        return
    place = origin_at(tree, ("postprocess", "jsonl_export", "path"))
    if place and (export.path.startswith("/") or ".." in export.path.split("/")):
        yield Fault(
            *place.value,
            place.text,
            "must be a path inside the run folder",
            shown(export.path),
            "write a file name such as export.jsonl",
        )
    names = list(export.fields)
    for index, field in enumerate(export.required_fields):
        where = origin_at(tree, ("postprocess", "jsonl_export", "required_fields", index))
        if field not in export.fields and where:
            guess = nearest(field, names)
            way_out = f"did you mean {guess}?" if guess else f"fields: {listing(names)}"
            yield Fault(*where.value, where.text, "is not an exported field", shown(field), way_out)


def unused(stages: Sequence[Stage], trees: dict[str, Mapping]) -> Iterator[Fault]:
    """Warnings for keys that no stage which inherits them reads."""
    seen: dict[Origin, set[str]] = {}
    used: set[Origin] = set()
    for stage in stages:
        kind = task_types.known()[stage.spec.task_type]
        for dotted, origin in _leaves(trees[stage.name], ""):
            if kind.reads(dotted):
                used.add(origin)
            else:
                seen.setdefault(origin, set()).add(stage.spec.task_type)
    for origin, kinds in seen.items():
        if origin not in used:
            yield Fault(
                *origin.key,
                origin.text,
                f"is not used by taskType {', '.join(sorted(kinds))}",
                "",
                "remove it, or check the taskType",
            )


def _leaves(tree: Mapping, prefix: str) -> Iterator[tuple[str, Origin]]:
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and dotted.count(".") < 2:
            yield from _leaves(value, f"{dotted}.")
        else:
            yield dotted, tree.origins[key]


def notices(
    stages: Sequence[Stage], trees: dict[str, Mapping], workflow: WorkflowConfig, spec: Mapping
) -> Iterator[Fault]:
    """Warnings for keys that are read but do less than they say."""
    for stage in stages:
        tree = trees[stage.name]
        for path in _literal_secrets(tree, ()):
            origin = origin_at(tree, path)
            if origin:
                yield Fault(
                    *origin.value,
                    origin.text,
                    "looks like a secret written into the file",
                    "",
                    "write ${NAME} and export NAME where it runs",
                )
    if workflow != WorkflowConfig():
        origin = Origin(("spec", "workflow_config"), (1, 1), (1, 1))
        yield Fault(*origin.key, origin.text, "is read but does not change the order or failure behaviour yet", "", "")


_SECRET = ("token", "password", "secret", "api_key", "apikey", "authorization")


def _literal_secrets(value: Json, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            named = any(word in key.lower().replace("-", "_") for word in _SECRET) and not key.lower().endswith(
                ("_tokens", "tokens")
            )
            if (
                named
                and isinstance(item, str)
                and item
                and not refs.has_reference(item)
                and key != "pad_token"
                and not key.endswith("_token_id")
            ):
                yield (*path, key)
            else:
                yield from _literal_secrets(item, (*path, key))
    elif isinstance(value, TreeList):
        for index, item in enumerate(value):
            yield from _literal_secrets(item, (*path, index))
