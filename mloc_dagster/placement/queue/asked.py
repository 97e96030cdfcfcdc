"""What a run asks of the queue: run tags, written when a job is made from a task file."""

from __future__ import annotations

import json
from collections.abc import Mapping

from dagster._core.storage.dagster_run import RunRecord
from dagster._core.storage.tags import PRIORITY_TAG

from mloc_dagster.placement.queue.items import Queued
from mloc_dagster.placement.workers.need import Need, need_of
from mloc_dagster.plan.steps import Plan

NEEDS, STAGES = "mloc/needs", "mloc/stage_needs"
SLO, EXPECTED, WAITING = "mloc/slo_seconds", "mloc/expected_seconds", "mloc/waiting"
NOT_BEFORE, AVOID = "mloc/not_before", "mloc/avoid_worker"
_ON = "mloc/on"
_LONGEST_OWNER = 200
"""Characters that the ledger keeps; whoever launches a run sets its tags."""


def queue_tags(plan: Plan) -> dict[str, str]:
    """Return the tags that say what a plan needs, how soon it should be done, how long it may take, its task types.

    The SLO of a run is the longest of its stages': it cannot be expected sooner. Its length is known beforehand only
    when each stage has `timeoutSeconds`.
    """
    specs = [stage.spec for stage in plan.task.stages]
    need = need_of([(spec, may_use_gpu(spec.task_type)) for spec in specs])
    tags = {NEEDS: json.dumps(need.as_dict()), **dict.fromkeys(map(type_tag, types_of(plan)), "true")}
    parts = [need_of([(spec, may_use_gpu(spec.task_type))]) for spec in specs]
    if any(part != need for part in parts):
        tags[STAGES] = json.dumps([part.as_dict() for part in parts])
    limits = [limit for spec in specs if (limit := spec.slo_limit()) is not None]
    if limits:
        tags[SLO] = f"{max(limits):g}"
    timeouts = [spec.timeout_seconds for spec in specs]
    if all(timeouts):
        tags[EXPECTED] = f"{sum(filter(None, timeouts)):g}"
    return tags


def types_of(plan: Plan) -> tuple[str, ...]:
    """Return the task types of a plan's stages, each once."""
    return tuple(dict.fromkeys(stage.spec.task_type for stage in plan.task.stages))


def type_tag(task_type: str) -> str:
    """Return the run tag of runs that have a stage of a type."""
    return f"mloc/type.{task_type}"


def queued(record: RunRecord, learned: Mapping[str, float]) -> Queued:
    """Return what the order needs to know of a run; tags that cannot be read count as absent.

    `learned` are seconds that tasks took lately, by `task_key`; they come before what the file says.
    """
    tags = record.dagster_run.tags
    need, stages, on_cpu = _need(tags), _stages(tags), tags.get(_ON) == "cpu"
    return Queued(
        run_id=record.dagster_run.run_id,
        owner=(tags.get("mloc/owner") or "unknown")[:_LONGEST_OWNER],
        submitted=record.create_timestamp.timestamp(),
        need=need.on_cpu if on_cpu else need,
        stages=tuple(part.on_cpu for part in stages) if on_cpu else stages,
        priority=int(_number(tags, PRIORITY_TAG) or 0),
        slo=_number(tags, SLO),
        expected=learned.get(task_key(tags)) or _number(tags, EXPECTED),
        task=tags.get("mloc/task") or record.dagster_run.job_name,
        not_before=_number(tags, NOT_BEFORE) or 0.0,
        avoid=tags.get(AVOID, ""),
    )


def task_key(tags: Mapping[str, str]) -> str:
    """Return the name under which the length of a task is remembered."""
    return f"{tags.get('mloc/owner')}/{tags.get('mloc/task')}"


def may_use_gpu(task_type: str) -> bool:
    """Whether the work is heavy; so is what cannot be loaded here, where the job may only be made."""
    from executors.base import ExecutorError
    from executors.registry import find

    try:
        return not find(task_type).inline
    except ExecutorError:
        return True


def _need(tags: Mapping[str, str]) -> Need:
    try:
        return Need.from_dict(json.loads(tags[NEEDS]))
    except (KeyError, TypeError, ValueError, RecursionError):
        return Need()


def _stages(tags: Mapping[str, str]) -> tuple[Need, ...]:
    try:
        return tuple(Need.from_dict(parts) for parts in json.loads(tags.get(STAGES) or "[]"))
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()


def _number(tags: Mapping[str, str], name: str) -> float | None:
    try:
        value = float(tags[name])
    except (KeyError, ValueError):
        return None
    return value if value == value and abs(value) < 1e12 else None
