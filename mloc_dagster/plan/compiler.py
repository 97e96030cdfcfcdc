"""From a task file to its steps: pulls, stages, deliveries."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from mloc_dagster.plan.steps import Plan, Step
from mloc_dagster.spec.data import Data
from mloc_dagster.spec.gates import gates_on
from mloc_dagster.spec.model import ModelSource
from mloc_dagster.spec.output import Destination
from mloc_dagster.spec.reads import stages_read
from mloc_dagster.spec.references import has_reference
from mloc_dagster.spec.task_types import BUILT_IN, TaskType, known
from mloc_dagster.spec.taskfile import Stage, TaskFile
from mloc_dagster.spec.workflow_checks import stage_of
from mloc_dagster.store.home import Home

_SOURCES = {
    "model": ("model.source",),
    "reward_model": ("reward_model",),
    "embedding": ("rag.embedding",),
    "reranker": ("rag.search.rerank_model",),
    "data": ("data.url", "data.dataset_name", "data.source"),
}
_LOGIN = re.compile(r"://[^/@\s]+@")


def compile_plan(task: TaskFile) -> Plan:
    """Return the steps of a task; a source that several stages name is pulled once.

    Weights that a gate judges are published after its evaluation.
    """
    steps: dict[str, Step] = {}
    published: list[Step] = []
    for stage in task.stages:
        needed = pulls(stage).values()
        for pull in needed:
            steps.setdefault(pull.key, pull)
        parents = tuple("/".join((task.name, name)) for name in waits_for(task, stage))
        needs = (*dict.fromkeys(pull.key for pull in needed), *parents)
        step = Step("stage", (task.name, stage.name), needs, stage)
        steps[step.key] = step
        destination = destination_of(task.stages, stage)
        if destination is not None:
            where = destination.url or destination.repo_id or destination.path or destination.bucket or ""
            gates = tuple("/".join((task.name, gate.name)) for gate in gates_on(task.stages, stage.name))
            source = _LOGIN.sub("://***@", f"{destination.type} {where}".strip())
            published.append(Step("publish", ("published", *step.asset_key), (step.key, *gates), stage, source))
    return Plan(task, (*steps.values(), *published, *_final_output(task)), task.warnings)


def waits_for(task: TaskFile, stage: Stage) -> tuple[str, ...]:
    """Return the stages without whose result a stage cannot run, in the order of the file.

    With `failure_strategy: continue` these are the ones that it reads; stages then run one at a time, so that the
    file's order holds as well.
    """
    if task.workflow.failure_strategy != "continue":
        return stage.depends_on
    read = stages_read(stage)
    return tuple(other.name for other in task.stages if other.name in read)


def final_stages(task: TaskFile) -> tuple[Stage, ...]:
    """Return the stages that `workflow_config.final_output` tells of; the last one when it names none."""
    final = task.workflow.final_output
    if final is None:
        return ()
    named = {stage_of(name) for name in final.names} or {task.stages[-1].name}
    return tuple(stage for stage in task.stages if stage.name in named)


def _final_output(task: TaskFile) -> tuple[Step, ...]:
    stages = final_stages(task)
    if not stages:
        return ()
    parents = tuple("/".join((task.name, stage.name)) for stage in stages)
    source = ", ".join(stage.name for stage in stages)
    return (Step("final_output", ("published", task.name, "final_output"), parents, stages[-1], source),)


def pulls(stage: Stage) -> dict[str, Step]:
    """Return what is pulled for a stage before it runs, by what it is: `model`, `reward_model`, `embedding`, ...

    Of a base that stages share, each pulls what its type reads.
    """
    reward, embedding, reranker = stage.spec.reward_model, stage.spec.rag.embedding, stage.spec.rag.search.rerank_model
    found = {
        "model": _model_pull(stage, stage.spec.model.source, "model.source"),
        "reward_model": _model_pull(stage, reward.source() if reward else None, "reward_model"),
        "embedding": _model_pull(stage, embedding.source() if embedding else None, "rag.embedding"),
        "reranker": _model_pull(stage, reranker.source() if reranker else None, "rag.search.rerank_model"),
        "data": _dataset_pull(stage),
    }
    kind = known()[stage.spec.task_type]
    return {name: step for name, step in found.items() if step and reads_source(kind, name)}


def reads_source(kind: TaskType, name: str) -> bool:
    """Whether stages of a type read a source that is pulled for them; `name` is its key in `pulls`."""
    return any(kind.reads(dotted) for dotted in _SOURCES[name]) or kind.name not in BUILT_IN


def destination_of(stages: Sequence[Stage], stage: Stage) -> Destination | None:
    """Return where a stage's result goes: into a folder of the stage's name where others name the same place.

    A place that the base of a file names is that of all stages; none of them may replace the results of another.
    """
    own = stage.spec.output.destination
    if own is None or own.type == "http" or (own.type == "local" and own.path is None):
        return own
    others = (other.spec.output.destination for other in stages if other.name != stage.name)
    if not any(other is not None and _place(other) == _place(own) for other in others):
        return own
    path = f"{own.path.rstrip('/')}/{stage.name}" if own.path else stage.name
    return own.model_copy(update={"path": path})


def model_key(source: ModelSource) -> tuple[str, ...]:
    """Return the asset key of a model: `model/<org>/<name>`, with the revision when it isn't the main one."""
    if source.type == "huggingface":
        parts = tuple(_clean(part) for part in source.identifier.split("/") if part)
    else:
        parts = (source.type, _file_key(source.identifier))
    return ("model", *_with_revision(parts, source.revision))


def dataset_key(data: Data) -> tuple[str, ...] | None:
    """Return the asset key of the data set that is to be pulled, or None when there is none."""
    name = data.dataset_name or data.url
    if data.source is not None:
        where = data.source.path if data.source.type == "local" else f"{data.source.bucket or ''}/{data.source.path}"
        return ("dataset", data.source.type, _file_key(where))
    if name is None or has_reference(name) or data.jsonl is not None:
        return None
    if "://" in name or name.startswith(("/", ".")):
        return ("dataset", "file", _file_key(name))
    parts = tuple(_clean(part) for part in name.split("/") if part)
    return ("dataset", *_with_revision(parts, data.revision))


def _model_pull(stage: Stage, source: ModelSource | None, at: str) -> Step | None:
    if source is None or has_reference(source.identifier) or any(d.startswith(at) for d in stage.deferred):
        return None
    return Step(
        "model", model_key(source), (), stage, _LOGIN.sub("://***@", f"{source.type}:{source.identifier}"), source
    )


def _dataset_pull(stage: Stage) -> Step | None:
    key = dataset_key(stage.spec.data)
    if key is None or any(d.startswith("data") for d in stage.deferred):
        return None
    data = stage.spec.data
    source = data.dataset_name or data.url or (data.source.path if data.source else "")
    return Step("dataset", key, (), stage, _LOGIN.sub("://***@", source))


def _place(destination: Destination) -> tuple[str | None, ...]:
    path = destination.path
    if destination.type == "local" and path is not None:
        path = str(Home(Path()).resolve_inside(path))
    return (destination.type, destination.bucket, destination.prefix, destination.repo_id, path)


def _with_revision(parts: tuple[str, ...], revision: str | None) -> tuple[str, ...]:
    if revision in (None, "main"):
        return parts
    return (*parts[:-1], f"{parts[-1]}@{_clean(str(revision))}")


def _file_key(where: str) -> str:
    name = _clean(Path(where.rstrip("/")).name) or "source"
    if name == where:
        return name
    return f"{name}-{hashlib.sha256(where.encode()).hexdigest()[:6]}"


def _clean(part: str) -> str:
    return re.sub(r"[^A-Za-z0-9._@-]", "-", part) or "-"
