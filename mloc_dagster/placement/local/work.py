"""Carries out one step of a plan on this machine."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from mloc_dagster.files import atomic
from mloc_dagster.placement import inventory
from mloc_dagster.placement.failures import diagnosis
from mloc_dagster.placement.failures.cause import Cause
from mloc_dagster.placement.failures.silence import lost_after
from mloc_dagster.placement.local import gate, inputs, process
from mloc_dagster.placement.local.final_output import write_final_output
from mloc_dagster.placement.local.finish import finish, finished, origin_of, reuse
from mloc_dagster.placement.local.outcome import Check, RunInfo, StepCancelled, StepFailed, StepOutcome, outcome_of
from mloc_dagster.placement.local.rerun import add_rerun
from mloc_dagster.plan.digest import stage_digest
from mloc_dagster.plan.steps import Plan, Step
from mloc_dagster.sources import Cache, PullError, pull_dataset, pull_model
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.quantity import format_bytes
from mloc_dagster.spec.task_types import known
from mloc_dagster.spec.taskfile import Stage
from mloc_dagster.store.results import note_task, write_envelope
from mloc_dagster.store.reuse import ReuseIndex

Report = Callable[[dict[str, Json]], None]
_SILENT = "gave no sign of life for {:g} s (stopped, or its machine hangs) and was killed; see MLOC_LOST_AFTER_SECONDS"


def run_step(plan: Plan, step: Step, run: RunInfo, report: Report) -> StepOutcome:
    """Carry out one step; raises StepFailed or StepCancelled."""
    assert step.stage is not None
    report = _logged(report, run, step)
    try:
        if step.kind in ("model", "dataset"):
            return _pull(step, step.stage, run, report)
        if step.kind == "publish":
            return _publish(plan, step.stage, run)
        if step.kind == "final_output":
            return write_final_output(plan, run)
        return _stage(plan, step.stage, run, report)
    except (PullError, inputs.InputError, gate.Refused) as error:
        raise StepFailed(str(error), Cause.INTERNAL if isinstance(error, PullError) else Cause.USER) from None


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
    available = inventory.gpus() if run.granted is None else run.granted
    placed = inventory.place(spec.resources, spec.enforce_cpu, run.on_cpu, available)
    if placed.refusal:
        raise StepFailed(f"{stage.name} {placed.refusal}", Cause.USER)
    given = inputs.gather(plan, stage, run.home, run.task_id)
    digest = stage_digest(stage, given.digests, placed.on_cpu)
    final = run.home.run_folder(run.task_id, stage.name)
    judge = partial(gate.judged, plan, stage, given.upstream, run.home)
    with _exclusive(run.home.work / f"{digest}.lock", run.cancelled) as lock:
        done = finished(final, digest)
        if done and (not run.fresh or done.metadata.get("run_id") in {run.run_id, *run.earlier}):
            judged = judge(done, again=False)
            if judged != done:
                write_envelope(final, judged)
            gate.record(run.home, judged)
            return outcome_of(stage, final, judged, None)
        note_task(run.home, plan.task.name, run.task_id)
        reusable = known()[spec.task_type].reusable and not run.fresh
        entry = ReuseIndex(run.home).lookup(digest) if reusable else None
        if entry is not None:
            envelope = reuse(stage, run, entry, digest, final, judge)
            gate.record(run.home, envelope)
            return outcome_of(stage, entry.folder, envelope, origin_of(entry))
        work = run.home.work / digest
        job = _write_job(plan, stage, run, given, placed, work)
        _execute(stage, job, work, run, report, lock)
        add_rerun(plan, stage, given, work, final)
        envelope = finish(stage, run, work, final, digest, placed, given, judge)
        gate.record(run.home, envelope)
        return outcome_of(stage, final, envelope, None)


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
        "embedding_path": str(given.embedding.path) if given.embedding else None,
        "reranker_path": str(given.reranker.path) if given.reranker else None,
        "document_paths": [str(one.path) if one else None for one in given.documents],
        "cache": str(run.home.cache),
        "results": str(run.home.results),
        "devices": list(placed.devices),
        "on_cpu": placed.on_cpu,
        "fresh": run.fresh,
        "code_allowed": os.environ.get("MLOC_TRUST_REMOTE_CODE", "") == "1",
    }
    atomic.write_json(work / "job.json", job)
    return work / "job.json"


def _execute(stage: Stage, job: Path, work: Path, run: RunInfo, report: Report, lock: int) -> None:
    from executors.registry import find

    if find(stage.spec.task_type).inline and not stage.spec.timeout_seconds:
        return _execute_here(job)
    try:
        patience = lost_after()
    except ValueError as error:
        raise StepFailed(str(error), Cause.USER) from None
    killed = diagnosis.oom_kills()
    ended = process.run_job(
        job,
        work / "logs",
        report=report,
        cancelled=run.cancelled,
        timeout=stage.spec.timeout_seconds,
        lost_after=patience,
        memory_bytes=_most_memory(stage),
        lock=lock,
    )
    if ended.cancelled:
        raise StepCancelled(f"{stage.name} was cancelled; what it had stored is continued by the next run")
    if ended.timed_out:
        limit = f"timeoutSeconds {stage.spec.timeout_seconds:g}"
        raise StepFailed(f"{stage.name} ran longer than {limit} and was ended", Cause.TIMED_OUT)
    if ended.silent:
        raise StepFailed(f"{stage.name} {_SILENT.format(patience)}", Cause.WORKER_LOST)
    if ended.code == 0 and (work / "result.json").is_file():
        return None
    kernel_killed = ended.out_of_memory or diagnosis.oom_kills() > killed
    raise _failure(stage, ended, work, kernel_killed=kernel_killed)


def _most_memory(stage: Stage) -> int | None:
    """What a stage is held to; one that may start a warm engine is not, since that serves other stages too."""
    memory, kind = stage.spec.resources.hardware.memory, known()[stage.spec.task_type]
    return memory * stage.spec.resources.replicas if memory and not kind.reads("model.vllm") else None


def _execute_here(job: Path) -> None:
    from executors.base import ExecutorError
    from executors.host import execute
    from executors.job import Job

    given = Job.read(job)
    try:
        result = execute(given)
    except ExecutorError as error:
        raise StepFailed(str(error), Cause.USER) from None
    atomic.write_text(given.out / "result.json", result.model_dump_json(indent=1))


def _failure(stage: Stage, ended: process.Ended, work: Path, *, kernel_killed: bool) -> StepFailed:
    log = f"log: {work / 'logs' / 'stdout.log'}"
    try:
        error = json.loads((work / "error.json").read_text("utf-8"))
    except (OSError, ValueError):
        cause = diagnosis.of_exit(ended.code, kernel_killed)
        what = f"{stage.name} {_ending(stage, ended, cause)}"
        return StepFailed(f"{what}\n{log}\n{process.last_lines(work / 'logs' / 'stdout.log')}", cause)
    cause = diagnosis.of_error(error["kind"], error["message"])
    if ended.out_of_memory and cause is Cause.INTERNAL:  # one of several processes was killed, and the others failed
        cause = Cause.OUT_OF_MEMORY
    hint = diagnosis.MEMORY_HINT if cause is Cause.OUT_OF_MEMORY else error.get("hint")
    parts = (f"{stage.name}: {error['message']}", hint, "" if cause is Cause.USER else log)
    return StepFailed("\n".join(filter(None, parts)), cause)


def _ending(stage: Stage, ended: process.Ended, cause: Cause) -> str:
    if cause is Cause.OUT_OF_MEMORY:
        bound = f"resources.hardware.memory {format_bytes(_most_memory(stage) or 0)}"
        why = f"it needs more than {bound}" if ended.out_of_memory else "the machine was out of memory"
        return f"was killed by the kernel: {why}. {diagnosis.MEMORY_HINT}"
    code = ended.code
    ending = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"{ending} (from outside)" if cause is Cause.WORKER_LOST else ending


def _publish(plan: Plan, stage: Stage, run: RunInfo) -> StepOutcome:
    from mloc_dagster.delivery import DeliveryError
    from mloc_dagster.placement.local.publish import publish

    try:
        metadata, envelope = publish(plan, stage, run.home, run.task_id)
    except DeliveryError as error:  # a delivery makes its own further tries
        raise StepFailed(str(error), Cause.USER) from None
    folder = run.home.run_folder(run.task_id, stage.name)
    return StepOutcome(metadata, str(envelope.metadata.get("digest")), folder=folder)


@contextmanager
def _exclusive(path: Path, cancelled: Callable[[], bool]) -> Iterator[int]:
    """Hold the lock of a digest and give its file descriptor.

    Two runs never do the same work at once; the second then reuses it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        _lock(file, cancelled)
        yield file.fileno()


def _lock(file: IO[str], cancelled: Callable[[], bool]) -> None:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if cancelled():
                raise StepCancelled("cancelled while waiting for another run of the same work") from None
            time.sleep(0.1)


__all__ = ["Check", "RunInfo", "StepCancelled", "StepFailed", "StepOutcome", "run_step"]
