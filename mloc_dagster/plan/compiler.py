"""From a task file to its steps: pulls, stages, deliveries."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from mloc_dagster.plan.steps import Plan, Step
from mloc_dagster.spec.data import Data
from mloc_dagster.spec.model import ModelSource
from mloc_dagster.spec.references import has_reference
from mloc_dagster.spec.taskfile import Stage, TaskFile


def compile_plan(task: TaskFile) -> Plan:
    """Return the steps of a task; a source that several stages name is pulled once."""
    steps: dict[str, Step] = {}
    published: list[Step] = []
    for stage in task.stages:
        pulls = [step for step in (_model_pull(stage), _dataset_pull(stage)) if step]
        for pull in pulls:
            steps.setdefault(pull.key, pull)
        parents = tuple("/".join((task.name, name)) for name in stage.depends_on)
        needs = (*(pull.key for pull in pulls), *parents)
        step = Step("stage", (task.name, stage.name), needs, stage)
        steps[step.key] = step
        destination = stage.spec.output.destination
        if destination is not None:
            where = destination.url or destination.repo_id or destination.path or destination.bucket or ""
            published.append(
                Step(
                    "publish", ("published", *step.asset_key), (step.key,), stage, f"{destination.type} {where}".strip()
                )
            )
    return Plan(task, (*steps.values(), *published), task.warnings)


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


def _model_pull(stage: Stage) -> Step | None:
    source = stage.spec.model.source
    if source is None or has_reference(source.identifier) or any(d.startswith("model.source") for d in stage.deferred):
        return None
    return Step("model", model_key(source), (), stage, f"{source.type}:{source.identifier}")


def _dataset_pull(stage: Stage) -> Step | None:
    key = dataset_key(stage.spec.data)
    if key is None or any(d.startswith("data") for d in stage.deferred):
        return None
    data = stage.spec.data
    return Step("dataset", key, (), stage, data.dataset_name or data.url or (data.source.path if data.source else ""))


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
