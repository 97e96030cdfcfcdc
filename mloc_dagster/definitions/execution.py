"""What the op of a step does: carries the step out and tells Dagster what came of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NoReturn

from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetExecutionContext,
    AssetKey,
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DataVersion,
    Failure,
    MaterializeResult,
    MetadataValue,
    RetryRequested,
)

from mloc_dagster.definitions.curves import curve
from mloc_dagster.definitions.telling import step_traced
from mloc_dagster.placement import inventory
from mloc_dagster.placement.failures.cause import ATTEMPTS, CAUSE, Cause, backoff_seconds
from mloc_dagster.placement.launcher.workers import lock_of
from mloc_dagster.plan.steps import Plan, Step
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.resources import Retry
from mloc_dagster.store.home import Home
from mloc_dagster.telemetry import logs
from mloc_dagster.usage.held import seat_data

if TYPE_CHECKING:
    from mloc_dagster.placement.ledger.grant import Grant
    from mloc_dagster.placement.local.work import Check, RunInfo, StepFailed, StepOutcome
    from mloc_dagster.placement.seats import Seats

TASK_ID, FRESH, ON = "mloc/task_id", "mloc/fresh", "mloc/on"
REPLAY_OF = "mloc/replay_of"
"""The run that this one does again, from what it had finished."""
_LOG_SECONDS = 5.0
_CURVES = (
    "loss", "eval_loss", "reward", "kl", "rewards/margins", "rewards/accuracies", "margin", "accuracy", "entropy",
    "mean_token_accuracy", "learning_rate",
)  # fmt: skip
"""Log entries of trainers that a person watches: of all of them, of reinforcement, of preferences, of supervision."""


def execute(context: AssetExecutionContext, plan: Plan, step: Step) -> Iterator[MaterializeResult | AssetCheckResult]:
    """Carry out a step; raises Failure, or RetryRequested when another try may help."""
    from mloc_dagster.placement.local.work import StepCancelled, StepFailed, run_step

    run = _run_info(context)
    _stop_after_failure(context, plan)
    begun = time.monotonic()
    try:
        with logs.about(run_id=run.run_id, task_id=run.task_id, step=step.key), step_traced(context.run, step.key):
            outcome = run_step(plan, step, run, _reporter(context))
    except StepCancelled as error:
        raise Failure(str(error), allow_retries=False) from None
    except StepFailed as error:
        _retry_or_fail(context, step, error)
    key = AssetKey(list(step.asset_key))
    if outcome.reused_from:
        context.log.info(f"reused from {outcome.reused_from}: same settings, inputs and code")
    yield MaterializeResult(
        asset_key=key,
        metadata=_metadata(step, outcome, time.monotonic() - begun),
        data_version=DataVersion(outcome.data_version),
        check_results=[_check(key, check) for check in _checks(step, outcome)],
    )


def task_id_of(instance: DagsterInstance, run: DagsterRun) -> str:
    """Return the id of a run's task.

    A tag names another task's only in a run that goes on from it, for anyone sets tags.
    """
    given, own = run.tags.get(TASK_ID), run.root_run_id or run.run_id
    if given in (None, "", own, run.run_id):
        return given or own
    before = instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None
    return task_id_of(instance, before) if before is not None and before.tags.get(TASK_ID) == given else own


def _stop_after_failure(context: AssetExecutionContext, plan: Plan) -> None:
    """Raise Failure when another step failed and the file wants nothing to start after that."""
    if plan.task.workflow.failure_strategy != "stop":
        return
    failed = context.instance.all_logs(context.run_id, of_type=DagsterEventType.STEP_FAILURE)
    names = ", ".join(dict.fromkeys(entry.step_key for entry in failed if entry.step_key))
    if names:
        raise Failure(f"not started: {names} failed, and workflow_config.failure_strategy is stop", allow_retries=False)


def _run_info(context: AssetExecutionContext) -> RunInfo:
    from mloc_dagster.placement.ledger.grant import Grant
    from mloc_dagster.placement.local.work import RunInfo

    run = context.run
    grant = Grant.of_run(run)
    return RunInfo(
        run_id=run.run_id,
        task_id=task_id_of(context.instance, run),
        home=Home.current(),
        fresh=run.tags.get(FRESH) == "true",
        on_cpu=run.tags.get(ON) == "cpu" or inventory.cpu_forced(),
        cancelled=lambda: False,
        earlier=frozenset(_earlier(context.instance, run)),
        granted=grant.devices if grant else None,
        lock=lock_of(run.run_id),
        seats=_seats(context, grant),
    )


def _seats(context: AssetExecutionContext, grant: Grant | None) -> Seats | None:
    """What gives stages their workers, where there are others than this machine; raises Failure for a bad file."""
    from mloc_dagster.placement.ledger import Ledger
    from mloc_dagster.placement.seats import Seats
    from mloc_dagster.placement.workers.declared import fleet_of
    from mloc_dagster.spec import SpecError

    try:
        fleet = fleet_of(Home.current())
    except SpecError as error:
        raise Failure("\n".join(map(str, error.faults)), allow_retries=False) from None
    if not fleet.engines and not (grant and grant.split):
        return None
    run = context.run
    return Seats(fleet, Ledger.of_instance(context.instance), run.run_id, run.tags.get("mloc/owner", "unknown"), grant)


def _earlier(instance: DagsterInstance, run: DagsterRun) -> Iterator[str]:
    """Ids of the runs that a run goes on from, latest first."""
    before = run
    while before is not None and (run_id := before.tags.get(REPLAY_OF)):
        yield run_id
        before = instance.get_run_by_id(run_id)


def _reporter(context: AssetExecutionContext) -> Callable[[dict[str, Json]], None]:
    """Log progress at most every few seconds, so that the event log stays small."""
    last = time.monotonic()

    def report(progress: dict[str, Json]) -> None:
        nonlocal last
        if "seat" in progress:
            step, data = context.get_step_execution_context().step.key, seat_data(progress["seat"])
            context.instance.report_engine_event(str(progress["note"]), context.run, data, step_key=step)
            return
        if "note" in progress:
            context.log.info(str(progress["note"]))
            return
        if time.monotonic() - last < _LOG_SECONDS:
            return
        last = time.monotonic()
        done, total, unit = progress.get("done"), progress.get("total"), progress.get("unit", "")
        metrics = progress.get("metrics") or {}
        values = ", ".join(f"{key} {value:.4g}" for key, value in metrics.items() if isinstance(value, (int, float)))
        context.log.info(f"{done}{f'/{total}' if total else ''} {unit} {values}".strip())

    return report


def _retry_or_fail(context: AssetExecutionContext, step: Step, error: StepFailed) -> NoReturn:
    """Ask for another attempt when the cause allows one; else tell the cause to the step's metadata and the run."""
    retry = step.stage.spec.retry if step.stage else Retry(max_retries=0)
    attempt = context.retry_number + 1
    if error.again and attempt <= error.cause.retries(retry.max_retries):
        wait = backoff_seconds(retry.backoff, attempt)
        context.log.warning(f"attempt {attempt} failed, {error.cause}; the next begins in {wait:g} s: {error}")
        raise RetryRequested(max_retries=retry.max_retries, seconds_to_wait=wait) from error
    note_cause(context.instance, context.run_id, error.cause, attempt)
    raise Failure(str(error), metadata={"cause": error.cause.value, "attempts": attempt}, allow_retries=False) from None


def note_cause(instance: DagsterInstance, run_id: str, cause: Cause, attempts: int | None = None) -> None:
    """Tag a run with why it fails, and with the attempts at the step that failed; the first to say it is believed."""
    run = instance.get_run_by_id(run_id)
    if run is not None and not run.tags.get(CAUSE):
        instance.add_run_tags(run_id, {CAUSE: cause.value, **({ATTEMPTS: str(attempts)} if attempts else {})})


def _checks(step: Step, outcome: StepOutcome) -> Iterator[Check]:
    """The outcome's checks, and a failed one for each that was promised but could not be made."""
    from mloc_dagster.definitions.assets import check_names
    from mloc_dagster.placement.local.work import Check

    seen = {check.name: check for check in outcome.checks}
    for name in check_names(step):
        yield seen.get(name) or Check(name, False, {"reason": "the result does not tell"})


def _check(key: AssetKey, check: Check) -> AssetCheckResult:
    severity = AssetCheckSeverity.ERROR
    metadata = {name: _value(value) for name, value in check.metadata.items()}
    return AssetCheckResult(
        asset_key=key, check_name=check.name, passed=check.passed, metadata=metadata, severity=severity
    )


def _metadata(step: Step, outcome: StepOutcome, seconds: float) -> dict[str, MetadataValue]:
    metadata: dict[str, MetadataValue] = {"seconds": MetadataValue.float(round(seconds, 3))}
    for name, value in outcome.metadata.items():
        if name in ("folder", "path", "responses"):
            metadata[name] = MetadataValue.path(str(value))
        elif name == "sample":
            metadata[name] = MetadataValue.md(_table(value))
        else:
            metadata[name] = _value(value)
    for name in _CURVES:
        points = [(entry["step"], entry[name]) for entry in outcome.log_history if _plottable(entry, name)]
        if len(points) > 1:
            metadata[f"{name}_curve"] = MetadataValue.md(curve(name, points))
            metadata[f"final_{name}"] = MetadataValue.float(float(points[-1][1]))
    limit = step.stage.spec.slo_limit() if step.kind == "stage" and step.stage else None
    if limit is not None:
        metadata["slo_seconds"] = MetadataValue.float(limit)
        metadata["slo_met"] = MetadataValue.bool(seconds <= limit)
    return metadata


def _plottable(entry: dict[str, Json], name: str) -> bool:
    value = entry.get(name)
    return isinstance(entry.get("step"), (int, float)) and isinstance(value, (int, float)) and math.isfinite(value)


def _value(value: Json) -> MetadataValue:
    if isinstance(value, bool):
        return MetadataValue.bool(value)
    if isinstance(value, int):
        return MetadataValue.int(value)
    if isinstance(value, float):
        return MetadataValue.float(value) if math.isfinite(value) else MetadataValue.text(str(value))
    if isinstance(value, str):
        return MetadataValue.text(value)
    return MetadataValue.json(_finite(value))


def _finite(value: Json) -> Json:
    """JSON has no NaN, and the web UI cannot read a log that holds one."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def _table(rows: list[dict[str, Json]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = (" ".join(str(row.get(column, "")).split()).replace("|", "\\|") for column in columns)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


__all__ = ["FRESH", "ON", "REPLAY_OF", "TASK_ID", "execute", "note_cause"]
