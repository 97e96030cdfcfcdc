"""Carries out one step of a plan on this machine."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO

from mloc_dagster.files import archives, atomic
from mloc_dagster.placement import inventory
from mloc_dagster.placement.local import gate, inputs, process
from mloc_dagster.plan.digest import stage_digest
from mloc_dagster.plan.steps import Plan, Step
from mloc_dagster.sources import Cache, PullError, pull_dataset, pull_model
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.task_types import known
from mloc_dagster.spec.taskfile import Stage
from mloc_dagster.store.evaluations import verdict_of
from mloc_dagster.store.home import Home
from mloc_dagster.store.manifest import write_manifest
from mloc_dagster.store.results import Envelope, note_task, read_envelope, write_envelope
from mloc_dagster.store.reuse import Entry, ReuseIndex

Report = Callable[[dict[str, Json]], None]
Judge = Callable[[Envelope], Envelope]
"""Adds the verdict of the stage's gate to a result."""
_NOT_FINITE = ("NaN", "Infinity", "-Infinity")
"""How a result writes numbers that JSON has no form for."""
_ARCHIVED = ("final_model", "final_lora")


class StepFailed(Exception):
    """A step that did not succeed; the message is for people. `user_fault` means that another try would fail alike."""

    def __init__(self, message: str, *, user_fault: bool) -> None:
        super().__init__(message)
        self.user_fault = user_fault


class StepCancelled(Exception):
    """A step that was ended on request; what it had stored is continued by the next attempt."""


@dataclass(frozen=True)
class RunInfo:
    """The run that a step belongs to. `task_id` stays the same when a task is tried again."""

    run_id: str
    task_id: str
    home: Home
    fresh: bool
    on_cpu: bool
    cancelled: Callable[[], bool]


@dataclass(frozen=True)
class Check:
    """One asset check: its name, whether it passed, and what was seen."""

    name: str
    passed: bool
    metadata: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class StepOutcome:
    """What a step leaves: values for people, the version of its data, checks, and the task it was reused from."""

    metadata: dict[str, Json]
    data_version: str
    checks: tuple[Check, ...] = ()
    reused_from: str | None = None
    log_history: tuple[dict[str, Json], ...] = ()
    folder: Path | None = None


def run_step(plan: Plan, step: Step, run: RunInfo, report: Report) -> StepOutcome:
    """Carry out one step; raises StepFailed or StepCancelled."""
    assert step.stage is not None
    report = _logged(report, run, step)
    try:
        if step.kind in ("model", "dataset"):
            return _pull(step, step.stage, run, report)
        if step.kind == "publish":
            return _publish(plan, step.stage, run)
        return _stage(plan, step.stage, run, report)
    except (PullError, inputs.InputError, gate.Refused) as error:
        raise StepFailed(str(error), user_fault=not isinstance(error, PullError)) from None


def _logged(report: Report, run: RunInfo, step: Step) -> Report:
    """Also append progress to `<home>/logs/<run id>.progress.jsonl`, which the command line follows."""
    run.home.logs.mkdir(parents=True, exist_ok=True)
    path = run.home.logs / f"{run.run_id}.progress.jsonl"

    def both(progress: dict[str, Json]) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step.key, **progress}, default=str) + "\n")
        report(progress)

    return both


def _pull(step: Step, stage: Stage, run: RunInfo, report: Report) -> StepOutcome:
    def progress(done: int, total: int | None) -> None:
        report({"done": done, "total": total, "unit": "bytes", "metrics": {}})

    cache, mirror = Cache(run.home.cache), inputs.mirror_of(stage.spec)
    if step.model is not None:
        pulled = pull_model(step.model, cache=cache, mirror=mirror, progress=progress)
    else:
        pulled = pull_dataset(stage.spec.data, cache=cache, mirror=mirror, progress=progress)
    metadata: dict[str, Json] = {
        "path": str(pulled.path),
        "digest": pulled.digest,
        "bytes": pulled.size,
        "origin": pulled.origin,
        "from_cache": pulled.from_cache,
    }
    return StepOutcome(metadata, pulled.digest, folder=pulled.path)


def _stage(plan: Plan, stage: Stage, run: RunInfo, report: Report) -> StepOutcome:
    spec = stage.spec
    placed = inventory.place(spec.resources, spec.enforce_cpu, run.on_cpu, inventory.gpus())
    if placed.refusal:
        raise StepFailed(f"{stage.name} {placed.refusal}", user_fault=True)
    given = inputs.gather(plan, stage, run.home, run.task_id)
    digest = stage_digest(stage, given.digests, placed.on_cpu)
    final = run.home.run_folder(run.task_id, stage.name)
    index = ReuseIndex(run.home)
    judge = partial(gate.judged, plan, stage, given.upstream, run.home)
    with _exclusive(run.home.work / f"{digest}.lock", run.cancelled):
        done = _finished(final, digest)
        if done and (not run.fresh or done.metadata.get("run_id") == run.run_id):
            judged = judge(done, again=False)
            if judged != done:
                write_envelope(final, judged)
            gate.record(run.home, judged)
            return _outcome(stage, final, judged, None)
        note_task(run.home, plan.task.name, run.task_id)
        entry = None if run.fresh else index.lookup(digest)
        if entry is not None:
            return _reuse(stage, run, entry, digest, final, judge)
        work = run.home.work / digest
        job = _write_job(plan, stage, run, given, placed, work)
        _execute(stage, job, work, run, report)
        envelope = _finish(stage, run, work, final, digest, placed, given, judge)
        entry = Entry(
            task_id=run.task_id,
            stage=stage.name,
            folder=final,
            artifact_digest=_artifact_digest(final),
            finished_at=envelope.received_at,
        )
        index.record(digest, entry)
        gate.record(run.home, envelope)
        return _outcome(stage, final, envelope, None)


def _write_job(
    plan: Plan, stage: Stage, run: RunInfo, given: inputs.Inputs, placed: inventory.Placement, work: Path
) -> Path:
    job: dict[str, Json] = {
        "task_id": f"{run.task_id}/{stage.name}",
        "task_name": plan.task.name,
        "stage": stage.name,
        "raw": stage.raw,
        "out": str(work),
        "upstream": {name: str(path) for name, path in given.upstream.items()},
        "model_path": str(given.model.path) if given.model else None,
        "model_digest": given.model.digest if given.model else None,
        "reward_model_path": str(given.reward_model.path) if given.reward_model else None,
        "data_path": str(given.data.path) if given.data else None,
        "results": str(run.home.results),
        "devices": list(placed.devices),
        "on_cpu": placed.on_cpu,
        "fresh": run.fresh,
        "code_allowed": os.environ.get("MLOC_TRUST_REMOTE_CODE", "") == "1",
    }
    atomic.write_json(work / "job.json", job)
    return work / "job.json"


def _execute(stage: Stage, job: Path, work: Path, run: RunInfo, report: Report) -> None:
    from executors.registry import find

    if find(stage.spec.task_type).inline and not stage.spec.timeout_seconds:
        return _execute_here(job)
    ended = process.run_job(
        job, work / "logs", report=report, cancelled=run.cancelled, timeout=stage.spec.timeout_seconds
    )
    if ended.cancelled:
        raise StepCancelled(f"{stage.name} was cancelled; what it had stored is continued by the next run")
    if ended.timed_out:
        raise StepFailed(
            f"{stage.name} ran longer than timeoutSeconds {stage.spec.timeout_seconds:g} and was ended", user_fault=True
        )
    if ended.code == 0 and (work / "result.json").is_file():
        return None
    raise _failure(stage, ended.code, work)


def _execute_here(job: Path) -> None:
    from executors.base import ExecutorError
    from executors.host import execute
    from executors.job import Job

    given = Job.read(job)
    try:
        result = execute(given)
    except ExecutorError as error:
        raise StepFailed(str(error), user_fault=True) from None
    atomic.write_text(given.out / "result.json", result.model_dump_json(indent=1))


def _failure(stage: Stage, code: int, work: Path) -> StepFailed:
    log = f"log: {work / 'logs' / 'stdout.log'}"
    try:
        error = json.loads((work / "error.json").read_text("utf-8"))
    except (OSError, ValueError):
        cause = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if code == -9:
            cause += " (out of memory, or killed from outside)"
        return StepFailed(
            f"{stage.name} {cause}\n{log}\n{process.last_lines(work / 'logs' / 'stdout.log')}", user_fault=False
        )
    message = "\n".join(str(part) for part in (error["message"], error.get("hint")) if part)
    user = error["kind"] == "user"
    return StepFailed(f"{stage.name}: {message}\n{log}" if not user else f"{stage.name}: {message}", user_fault=user)


def _finish(
    stage: Stage, run: RunInfo, work: Path, final: Path, digest: str, placed: inventory.Placement, given: inputs.Inputs,
    judge: Judge,
) -> Envelope:  # fmt: skip
    """Turn a work folder into a run folder: archives, envelope with verdict, manifest, then one rename."""
    result = json.loads((work / "result.json").read_text("utf-8"))
    payload = _moved(result["payload"], str(work), str(final))
    for name in _ARCHIVED:
        if (work / name).is_dir():
            archive = _archive(work / name, work / "artifacts")
            payload[f"{name}_archive_path"] = str(final / "artifacts" / archive.name)
            payload[f"{name}_archive_bytes"] = archive.stat().st_size
    metadata = {
        **_moved(result.get("metadata", {}), str(work), str(final)),
        "metrics": result.get("metrics", {}),
        "digest": digest,
        "inputs": given.digests,
        "run_id": run.run_id,
        "task_type": stage.spec.task_type,
        "devices": list(placed.devices) or ["cpu"],
    }
    if placed.note:
        metadata["placement_note"] = placed.note
    if given.model:
        metadata["model_digest"] = given.model.digest
    envelope = Envelope(
        task_id=f"{run.task_id}/{stage.name}",
        stage=stage.name,
        worker=socket.gethostname(),
        metadata=metadata,
        received_at=datetime.now(UTC).isoformat(),
        result=payload,
    )
    envelope = judge(envelope)
    for leftover in ("result.json", "error.json", "job.json", ".cache"):
        path = work / leftover
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    write_envelope(work, envelope)
    write_manifest(work, f"{run.task_id}/{stage.name}", list(stage.spec.output.artifacts))
    _publish_folder(work, final)
    return envelope


def _archive(folder: Path, out: Path) -> Path:
    try:
        return archives.make_archive(folder, out)
    except archives.ArchiveError as error:
        raise StepFailed(f"{folder.name} cannot be archived: {error}", user_fault=False) from None


def _publish_folder(work: Path, final: Path) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        old = final.with_name(f".{final.name}.replaced")
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
        work.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        work.rename(final)


def _reuse(stage: Stage, run: RunInfo, entry: Entry, digest: str, final: Path, judge: Judge) -> StepOutcome:
    """Write the envelope of an earlier result into this task's folder; its artifacts stay where they are."""
    source = read_envelope(entry.folder / "responses.json")
    origin = f"{entry.task_id}/{entry.stage}"
    envelope = source.model_copy(
        update={
            "task_id": f"{run.task_id}/{stage.name}",
            "stage": stage.name,
            "received_at": datetime.now(UTC).isoformat(),
            "metadata": {**source.metadata, "reused_from": origin, "run_id": run.run_id, "digest": digest},
        }
    )
    envelope = judge(envelope)
    write_envelope(final, envelope)
    write_manifest(final, envelope.task_id, [])
    gate.record(run.home, envelope)
    return _outcome(stage, entry.folder, envelope, origin)


def _finished(final: Path, digest: str) -> Envelope | None:
    try:
        envelope = read_envelope(final / "responses.json")
    except (OSError, ValueError):
        return None
    return envelope if envelope.metadata.get("digest") == digest else None


def _outcome(stage: Stage, folder: Path, envelope: Envelope, reused_from: str | None) -> StepOutcome:
    result, kind = envelope.result, known()[stage.spec.task_type]
    metadata: dict[str, Json] = {"folder": str(folder), "responses": str(folder / "responses.json")}
    metadata.update(
        {key: value for key, value in envelope.metadata.items() if isinstance(value, (str, int, float, bool))}
    )
    for group in ("metrics", "usage"):
        values = envelope.metadata.get("metrics") if group == "metrics" else result.get("usage")
        if isinstance(values, dict):
            metadata.update(
                {f"{group}/{k}": v for k, v in values.items() if isinstance(v, (int, float)) and math.isfinite(v)}
            )
    if isinstance(result.get("model"), str):
        metadata["model"] = result["model"]
    if isinstance(result.get("items"), list):
        metadata["rows"] = len(result["items"])
        metadata["sample"] = [_sample(item) for item in result["items"][:5] if isinstance(item, dict)]
    if isinstance(result.get("rows"), list):
        metadata["rows"] = result.get("rows_total", len(result["rows"]))
        metadata["sample"] = [_clipped(row) for row in result["rows"][:5] if isinstance(row, dict)]
    if reused_from:
        metadata["reused_from"] = reused_from
    history = tuple(entry for entry in result.get("log_history") or () if isinstance(entry, dict))
    checks = [_artifacts_check(folder), *(_training_checks(result, history) if kind.trains else ())]
    checks.extend(_gate_checks(envelope))
    return StepOutcome(metadata, str(envelope.metadata["digest"]), tuple(checks), reused_from, history, folder)


def _sample(item: dict[str, Json]) -> dict[str, Json]:
    return {key: str(item.get(key))[:200] for key in ("index", "prompt", "output") if key in item}


def _clipped(row: dict[str, Json]) -> dict[str, Json]:
    return {key: str(value)[:200] for key, value in row.items()}


def _gate_checks(envelope: Envelope) -> Iterator[Check]:
    verdict = verdict_of(envelope)
    if verdict is not None:
        seen = verdict.model_dump(exclude={"gate", "passed", "rule", "result"}, mode="json")
        yield Check("gate", verdict.passed, {key: value for key, value in seen.items() if value is not None})


def _artifacts_check(folder: Path) -> Check:
    entries = json.loads((folder / "manifest.json").read_text("utf-8"))["entries"]
    missing = [entry["name"] for entry in entries if entry["status"] == "missing" and entry.get("required", True)]
    return Check("artifacts_present", not missing, {"missing": missing, "entries": len(entries)})


def _training_checks(result: dict[str, Json], history: tuple[dict[str, Json], ...]) -> Iterator[Check]:
    told = [entry["loss"] for entry in history if "loss" in entry]
    losses = [float(loss) for loss in told if isinstance(loss, (int, float)) or loss in _NOT_FINITE]
    mean = (result.get("metrics") or {}).get("train_loss")
    if not losses and isinstance(mean, (int, float)):
        losses = [mean]  # fewer steps than logging_steps
    finite = bool(losses) and all(math.isfinite(loss) for loss in losses)
    yield Check("loss_finite", finite, {"first": losses[0], "last": losses[-1]} if losses else {})
    if isinstance(result.get("weights_changed"), bool):
        yield Check("weights_changed", result["weights_changed"], {"weights_digest": str(result.get("weights_digest"))})


def _publish(plan: Plan, stage: Stage, run: RunInfo) -> StepOutcome:
    from mloc_dagster.delivery import DeliveryError
    from mloc_dagster.placement.local.publish import publish

    try:
        metadata, envelope = publish(plan, stage, run.home, run.task_id, run.run_id)
    except DeliveryError as error:  # a delivery makes its own further tries
        raise StepFailed(str(error), user_fault=True) from None
    folder = run.home.run_folder(run.task_id, stage.name)
    return StepOutcome(metadata, str(envelope.metadata.get("digest")), folder=folder)


@contextmanager
def _exclusive(path: Path, cancelled: Callable[[], bool]) -> Iterator[None]:
    """Hold the lock of a digest, so that two runs never do the same work at once; the second then reuses it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        _lock(file, cancelled)
        yield


def _lock(file: IO[str], cancelled: Callable[[], bool]) -> None:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if cancelled():
                raise StepCancelled("cancelled while waiting for another run of the same work") from None
            time.sleep(0.1)


def _artifact_digest(folder: Path) -> str:
    return hashlib.sha256((folder / "responses.json").read_bytes()).hexdigest()


def _moved(value: Json, old: str, new: str) -> Json:
    """Return JSON with every path below `old` put below `new`."""
    if isinstance(value, str):
        scheme = "file://" if value.startswith("file://") else ""
        path = value.removeprefix(scheme)
        return scheme + new + path[len(old) :] if path == old or path.startswith(old + os.sep) else value
    if isinstance(value, dict):
        return {key: _moved(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, old, new) for item in value]
    return value
