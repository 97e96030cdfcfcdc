"""A plan as a Dagster job of assets."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dagster import (
    AssetCheckSpec,
    AssetKey,
    AssetsDefinition,
    AssetSpec,
    JobDefinition,
    in_process_executor,
    multi_asset,
)
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.definitions.assets.job.asset_job import build_asset_job

from mloc_dagster.definitions.execution import execute
from mloc_dagster.plan.digest import CODE_VERSION
from mloc_dagster.plan.steps import Plan, Step
from mloc_dagster.spec.task_types import known
from mloc_dagster.spec.taskfile import Stage

_KINDS = {"dataset": {"dataset"}, "publish": {"publish"}}


@dataclass(frozen=True)
class TaskJob:
    """A job with the plan and the assets that it was made from."""

    plan: Plan
    assets: tuple[AssetsDefinition, ...]
    job: JobDefinition


def build_job(plan: Plan, name: str) -> TaskJob:
    """Return the job of a plan. Steps run one after the other in the run's process, heavy work in processes of its own."""
    assets = tuple(_asset(plan, step) for step in plan.steps)
    job = build_asset_job(
        name=name,
        asset_graph=AssetGraph.from_assets(assets),
        allow_different_partitions_defs=False,
        executor_def=in_process_executor,
        description=plan.task.description or f"Task {plan.task.name}",
        tags=run_tags(plan),
    )
    return TaskJob(plan, assets, job)


def _asset(plan: Plan, step: Step) -> AssetsDefinition:
    stage = step.stage
    assert stage is not None
    key = AssetKey(list(step.asset_key))
    spec = AssetSpec(
        key=key,
        deps=[AssetKey(list(plan.by_key[parent].asset_key)) for parent in step.depends_on],
        description=_description(plan, step, stage),
        group_name=_identifier(plan.task.project) if step.kind in ("stage", "publish") else f"{step.kind}s",
        owners=[_owner(plan.task.owner)] if step.kind in ("stage", "publish") else None,
        tags=_asset_tags(plan, step, stage),
        kinds=_kinds(step, stage),
        code_version=CODE_VERSION,
        metadata={"source": step.source} if step.source else None,
    )
    checks = [AssetCheckSpec(name=name, asset=key) for name in check_names(step)]

    @multi_asset(name=step.op_name, specs=[spec], check_specs=checks, op_tags={"mloc/step": step.kind})
    def compute(context):  # Dagster reads annotations at run time, which deferred ones break
        yield from execute(context, plan, step)

    return compute


def check_names(step: Step) -> tuple[str, ...]:
    """Names of the checks that a step reports."""
    if step.kind != "stage" or step.stage is None:
        return ()
    trains = known()[step.stage.spec.task_type].trains
    return ("artifacts_present", "loss_finite", "weights_changed") if trains else ("artifacts_present",)


def run_tags(plan: Plan) -> dict[str, str]:
    """Tags of every run of a plan."""
    task = plan.task
    return {"mloc/task": task.name, "mloc/owner": task.owner, "mloc/project": task.project, "mloc/spec_digest": task.digest[:16]}


def _asset_tags(plan: Plan, step: Step, stage: Stage) -> dict[str, str]:
    if step.kind in ("model", "dataset"):
        return {"mloc/kind": step.kind}
    tags = {"owner": plan.task.owner, "project": plan.task.project, "task_type": stage.spec.task_type}
    return {key: _tag_value(value) for key, value in tags.items()}


def _description(plan: Plan, step: Step, stage: Stage) -> str:
    if step.kind == "stage":
        what = known()[stage.spec.task_type].summary
        return f"{plan.task.description}\n\nStage {stage.name} ({stage.spec.task_type}): {what}.".strip()
    return {"model": "Model", "dataset": "Data set", "publish": "Published result"}[step.kind] + f" {step.source}"


def _kinds(step: Step, stage: Stage) -> set[str]:
    if step.kind == "stage":
        return {stage.spec.task_type.replace("_", "-"), "python"}
    if step.kind == "model":
        source = stage.spec.model.source
        return {"model", source.type if source else "local"}
    return _KINDS[step.kind]


def _owner(owner: str) -> str:
    if re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", owner):
        return owner
    return f"team:{re.sub(r'[^A-Za-z0-9_-]', '-', owner)}"


def _identifier(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", text)


def _tag_value(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)[:63].strip("-_.") or "unknown"
