"""A plan as a Dagster job of assets."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import yaml
from dagster import (
    AssetCheckSpec,
    AssetKey,
    AssetsDefinition,
    AssetSpec,
    JobDefinition,
    MetadataValue,
    in_process_executor,
    multi_asset,
)
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.definitions.assets.job.asset_job import build_asset_job

from mloc_dagster.definitions.execution import execute
from mloc_dagster.placement.executor import DEVICE, RETRY, side_by_side
from mloc_dagster.placement.queue.asked import queue_tags
from mloc_dagster.plan.digest import CODE_VERSION
from mloc_dagster.plan.steps import OF_TASK, Plan, Step
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.task_types import known
from mloc_dagster.spec.taskfile import Stage

_SECRET = re.compile("token|secret|passw|authorization|cookie|credential|api_?key|access_?key", re.IGNORECASE)
_OPEN = re.compile("tokens$|tokenizer|token_id|^(max|min|pad|eos|bos|stop|num)_", re.IGNORECASE)
_TITLES = {
    "model": "Model",
    "dataset": "Data set",
    "publish": "Published result",
    "final_output": "What the workflow hands out:",
}
_LOGIN = re.compile(r"://[^/@\s]+@")


@dataclass(frozen=True)
class TaskJob:
    """A job with the plan and the assets that it was made from."""

    plan: Plan
    assets: tuple[AssetsDefinition, ...]
    job: JobDefinition


def build_job(plan: Plan, name: str) -> TaskJob:
    """Return the job of a plan: steps that wait for nothing run side by side, unless the file wants one at a time."""
    common = Counter(step.op_name for step in plan.steps)
    assets = tuple(_asset(plan, step, _op_name(step, common)) for step in plan.steps)
    job = build_asset_job(
        name=name,
        asset_graph=AssetGraph.from_assets(assets),
        allow_different_partitions_defs=False,
        executor_def=in_process_executor if plan.task.workflow.one_at_a_time else side_by_side,
        description=plan.task.description or f"Task {plan.task.name}",
        tags=run_tags(plan),
    )
    return TaskJob(plan, assets, job)


def _op_name(step: Step, common: Counter[str]) -> str:
    """The step's name for its op; told apart where two keys differ only in characters that Dagster does not take."""
    if common[step.op_name] == 1:
        return step.op_name
    return f"{step.op_name}_{hashlib.sha256(step.key.encode()).hexdigest()[:6]}"


def _asset(plan: Plan, step: Step, op_name: str) -> AssetsDefinition:
    stage = step.stage
    assert stage is not None
    key = AssetKey(list(step.asset_key))
    spec = AssetSpec(
        key=key,
        deps=[AssetKey(list(plan.by_key[parent].asset_key)) for parent in step.depends_on],
        description=_description(plan, step, stage),
        group_name=_identifier(plan.task.project) if step.kind in OF_TASK else f"{step.kind}s",
        owners=[_owner(plan.task.owner)] if step.kind in OF_TASK else None,
        tags=_asset_tags(plan, step, stage),
        kinds=_kinds(step, stage),
        code_version=CODE_VERSION,
        metadata=_metadata(plan, step, stage),
    )
    checks = [AssetCheckSpec(name=name, asset=key) for name in check_names(step)]

    @multi_asset(name=op_name, specs=[spec], check_specs=checks, op_tags=_op_tags(plan, step))
    def compute(context):  # Dagster reads annotations at run time, which deferred ones break
        yield from execute(context, plan, step)

    return compute


def _op_tags(plan: Plan, step: Step) -> dict[str, str]:
    """The step's kind, its place in the file (it decides between steps that are ready), how often it is tried again
    when its process dies, whether it takes a GPU."""
    tags = {"mloc/step": step.kind, "dagster/priority": str(-plan.steps.index(step))}
    if step.stage is not None:
        tags[RETRY] = step.stage.spec.retry.model_dump_json()
    return {**tags, DEVICE: "gpu"} if step.kind == "stage" and step.stage and _may_take_gpu(step.stage) else tags


def _may_take_gpu(stage: Stage) -> bool:
    gpu = stage.spec.resources.hardware.gpu
    return not stage.spec.enforce_cpu and (gpu is None or gpu.count != 0)


def check_names(step: Step) -> tuple[str, ...]:
    """Names of the checks that a step reports."""
    if step.kind != "stage" or step.stage is None:
        return ()
    spec = step.stage.spec
    training = ("loss_finite", "weights_changed") if known()[spec.task_type].trains else ()
    gate = ("gate",) if spec.evaluation and spec.evaluation.gate and spec.task_type == "evaluation" else ()
    retrieval = ("retrieval",) if _measures_retrieval(step.stage) else ()
    return ("artifacts_present", *training, *gate, *retrieval)


def _measures_retrieval(stage: Stage) -> bool:
    """Whether the queries of a stage say which documents are right."""
    given = stage.spec.rag.expected_field is not None or stage.is_deferred("rag.expected_field")
    return given and known()[stage.spec.task_type].reads("rag.expected_field")


def run_tags(plan: Plan) -> dict[str, str]:
    """Tags of every run of a plan."""
    task = plan.task
    return {
        "mloc/task": task.name,
        "mloc/owner": task.owner,
        "mloc/project": task.project,
        "mloc/spec_digest": task.digest[:16],
        **queue_tags(plan),
    }


def _asset_tags(plan: Plan, step: Step, stage: Stage) -> dict[str, str]:
    if step.kind in ("model", "dataset"):
        return {"mloc/kind": step.kind}
    tags = {"owner": plan.task.owner, "project": plan.task.project, "task_type": stage.spec.task_type}
    return {key: _tag_value(value) for key, value in tags.items()}


def _description(plan: Plan, step: Step, stage: Stage) -> str:
    if step.kind == "stage":
        what = known()[stage.spec.task_type].summary
        return f"{plan.task.description}\n\nStage {stage.name} ({stage.spec.task_type}): {what}.".strip()
    return f"{_TITLES[step.kind]} {_source(step)}"


def _metadata(plan: Plan, step: Step, stage: Stage) -> dict[str, MetadataValue]:
    metadata: dict[str, MetadataValue] = {}
    if step.source:
        metadata["source"] = MetadataValue.text(_source(step))
    if step.kind not in OF_TASK:
        return metadata
    if plan.task.path:
        metadata["task_file"] = MetadataValue.path(f"{plan.task.path.absolute()}:{stage.line}")
    if step.kind == "stage":
        text = yaml.safe_dump(_without_secrets(stage.raw), sort_keys=False, allow_unicode=True)
        metadata["spec"] = MetadataValue.md(f"```yaml\n{text}```")
    return metadata


def _source(step: Step) -> str:
    return _LOGIN.sub("://***@", step.source)


def _without_secrets(value: Json, name: str = "", hidden: bool = False) -> Json:
    """Return a section with the values of keys that name a secret masked; references such as `${TOKEN}` stay."""
    hidden = hidden or name == "headers" or bool(_SECRET.search(name) and not _OPEN.search(name))
    if isinstance(value, Mapping):
        return {str(key): _without_secrets(item, str(key), hidden) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_secrets(item, "", hidden) for item in value]
    if hidden and value is not None and not isinstance(value, bool):
        return value if isinstance(value, str) and value.startswith("${") else "***"
    return _LOGIN.sub("://***@", value) if isinstance(value, str) else value


def _kinds(step: Step, stage: Stage) -> set[str]:
    """Kinds for the icons of the UI: what it is, and what makes it."""
    spec = stage.spec
    if step.kind == "model":
        return {"model", step.model.type if step.model else "local"}
    if step.kind == "dataset":
        return {"dataset", "huggingface"} if spec.data.dataset_name else {"dataset"}
    if step.kind == "final_output":
        return {"publish", "local"}
    if step.kind == "publish":
        return {"publish", *([spec.output.destination.type] if spec.output.destination else [])}
    if spec.model.vllm:
        engine = "vllm"
    else:
        engine = "pytorch" if known()[spec.task_type].trains or spec.model.source else "python"
    return {spec.task_type.replace("_", "-"), engine}


def _owner(owner: str) -> str:
    if re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", owner):
        return owner
    return f"team:{re.sub(r'[^A-Za-z0-9_-]', '-', owner)}"


def _identifier(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", text)


def _tag_value(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)[:63].strip("-_.") or "unknown"
