"""Warnings: keys that nothing reads, that do less than they say, and secrets written into a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mloc_dagster.spec import agent_checks, task_types
from mloc_dagster.spec import references as refs
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.faults import Fault
from mloc_dagster.spec.stage import StageSpec
from mloc_dagster.spec.taskfile import Stage
from mloc_dagster.spec.tree import Mapping, Origin
from mloc_dagster.spec.tree import Sequence as TreeList
from mloc_dagster.spec.typed import origin_at

_SECRET = ("token", "password", "secret", "api_key", "apikey", "authorization")
_NO_SECRET = ("tokens", "_token_id", "pad_token", "eos_token", "bos_token")
_ROW_SOURCES = ("data.jsonl", "data.source", "data.dataset_name", "data.url", "data.prompts", "data.preferences")
_PROMPT_SOURCES = (
    "data.template",
    "data.task",
    "data.items",
    "data.jsonl",
    "data.url",
    "data.prompts",
    "data.input_sources",
    "inference.prompts",
    "query",
    "task",
)
_SOURCE_OF_TYPE = {
    "graph_template": "data.template",
    "static": "data.task",
    "list": "data.items",
    "dataset": "data.url",
}


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
            what = f"is not used by taskType {', '.join(sorted(kinds))}"
            yield Fault(*origin.key, origin.text, what, "", "remove it, or check the taskType")


def notices(stages: Sequence[Stage], trees: dict[str, Mapping]) -> Iterator[Fault]:
    """Warnings for keys that are read but do less than they say."""
    for stage in stages:
        tree = trees[stage.name]
        yield from _secrets(tree)
        yield from _one_replica(stage, tree)
        yield from _spare_sources(stage, tree)
        yield from agent_checks.no_model(stage, tree)
        yield from _stage_names(tree, {other.name for other in stages})


def _leaves(tree: Mapping, prefix: str) -> Iterator[tuple[str, Origin]]:
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and dotted.count(".") < 2:
            yield from _leaves(value, f"{dotted}.")
        else:
            yield dotted, tree.origins[key]


def _one_replica(stage: Stage, tree: Mapping) -> Iterator[Fault]:
    """Replicas of a stage that nothing divides among them."""
    kind = task_types.known()[stage.spec.task_type]
    replicas, sharded = stage.spec.resources.replicas, stage.spec.parallel.enabled and kind.reads("parallel")
    place = origin_at(tree, ("resources", "replicas"))
    if place is None or replicas == 1 or kind.trains:
        return
    if not sharded:
        way_out = "add parallel: {enabled: true}" if kind.reads("parallel") else "remove it"
        yield Fault(*place.value, place.text, "runs as one replica", str(replicas), way_out)
    elif replicas > stage.spec.parallel.max_shards:
        what = f"is more than parallel.max_shards {stage.spec.parallel.max_shards}, which holds"
        yield Fault(*place.value, place.text, what, str(replicas), "raise max_shards")


def _spare_sources(stage: Stage, tree: Mapping) -> Iterator[Fault]:
    kind = task_types.known()[stage.spec.task_type]
    if not kind.needs_data:
        return
    first = _SOURCE_OF_TYPE.get(stage.spec.data.type or "", f"data.{stage.spec.data.type}")
    order = _ROW_SOURCES if kind.trains else (first, *(dotted for dotted in _PROMPT_SOURCES if dotted != first))
    given = [dotted for dotted in order if _given(stage.spec, dotted) or dotted in stage.deferred]
    for dotted in given[1:]:
        place = origin_at(tree, tuple(dotted.split(".")))
        if place:
            way_out = "keep one source of data"
            yield Fault(*place.key, place.text, f"is not read, because {given[0]} is given and goes first", "", way_out)


def _given(spec: StageSpec, dotted: str) -> bool:
    value: Json = spec
    for part in dotted.split("."):
        value = getattr(value, part, None)
    return value is not None


def _stage_names(tree: Mapping, names: set[str]) -> Iterator[Fault]:
    for path, body in refs.find(tree):
        place = origin_at(tree, path)
        if place and body.strip() in names:
            what = f"${{{body}}} is an environment variable, not the stage of that name"
            yield Fault(
                *place.value, place.text, what, "", f"write ${{{body.strip()}.result.…}} for the stage's result"
            )


def _secrets(tree: Mapping) -> Iterator[Fault]:
    for path in _literal_secrets(tree, ()):
        origin = origin_at(tree, path)
        if origin:
            what = "looks like a secret written into the file"
            yield Fault(*origin.value, origin.text, what, "", "write ${NAME} and export NAME where it runs")


def _literal_secrets(value: Json, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if _is_secret(key) and isinstance(item, str) and item and not refs.has_reference(item):
                yield (*path, key)
            else:
                yield from _literal_secrets(item, (*path, key))
    elif isinstance(value, TreeList):
        for index, item in enumerate(value):
            yield from _literal_secrets(item, (*path, index))


def _is_secret(key: str) -> bool:
    folded = key.lower().replace("-", "_")
    return any(word in folded for word in _SECRET) and not folded.endswith(_NO_SECRET)
