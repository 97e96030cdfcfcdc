"""What a run asks of the queue: run tags, written when a job is made from a task file."""

from __future__ import annotations

import json
from collections.abc import Mapping

from dagster._core.storage.dagster_run import RunRecord
from dagster._core.storage.tags import PRIORITY_TAG

from mloc_dagster.placement.queue.items import Queued
from mloc_dagster.placement.workers.need import Need, need_of
from mloc_dagster.plan.steps import Plan

NEEDS, SLO, EXPECTED, WAITING = "mloc/needs", "mloc/slo_seconds", "mloc/expected_seconds", "mloc/waiting"
_ON = "mloc/on"


def queue_tags(plan: Plan) -> dict[str, str]:
    """Return the tags that say what a plan needs, how soon it should be done and how long it may take.

    The SLO of a run is the longest of its stages': it cannot be expected sooner. Its length is known beforehand only
    when each stage has `timeoutSeconds`.
    """
    specs = [stage.spec for stage in plan.task.stages]
    need = need_of([(spec, _may_use_gpu(spec.task_type)) for spec in specs])
    tags = {NEEDS: json.dumps(need.as_dict())}
    limits = [limit for spec in specs if (limit := spec.slo_limit()) is not None]
    if limits:
        tags[SLO] = f"{max(limits):g}"
    timeouts = [spec.timeout_seconds for spec in specs]
    if all(timeouts):
        tags[EXPECTED] = f"{sum(filter(None, timeouts)):g}"
    return tags


def queued(record: RunRecord, learned: Mapping[str, float]) -> Queued:
    """Return what the order needs to know of a run; tags that cannot be read count as absent.

    `learned` are seconds that tasks took lately, by `task_key`; they come before what the file says.
    """
    tags = record.dagster_run.tags
    need = _need(tags)
    return Queued(
        run_id=record.dagster_run.run_id,
        owner=tags.get("mloc/owner") or "unknown",
        submitted=record.create_timestamp.timestamp(),
        need=need.on_cpu if tags.get(_ON) == "cpu" else need,
        priority=int(_number(tags, PRIORITY_TAG) or 0),
        slo=_number(tags, SLO),
        expected=learned.get(task_key(tags)) or _number(tags, EXPECTED),
    )


def task_key(tags: Mapping[str, str]) -> str:
    """Return the name under which the length of a task is remembered."""
    return f"{tags.get('mloc/owner')}/{tags.get('mloc/task')}"


def _may_use_gpu(task_type: str) -> bool:
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
    except (KeyError, TypeError, ValueError):
        return Need()


def _number(tags: Mapping[str, str], name: str) -> float | None:
    try:
        value = float(tags[name])
    except (KeyError, ValueError):
        return None
    return value if value == value and abs(value) < 1e12 else None
