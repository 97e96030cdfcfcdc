"""Carries out one step of a plan on this machine."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO

from executors.stopping import grace_seconds
from mloc_dagster.files import atomic
from mloc_dagster.placement import inventory
from mloc_dagster.placement.failures import diagnosis
from mloc_dagster.placement.failures.cause import Cause
from mloc_dagster.placement.failures.silence import lost_after
from mloc_dagster.placement.inventory import Placement
from mloc_dagster.placement.local import gate, inputs, process
from mloc_dagster.placement.local.final_output import write_final_output
from mloc_dagster.placement.local.finish import finish, finished, origin_of, reuse
from mloc_dagster.placement.local.outcome import (
    Check,
    RunInfo,
    StepCancelled,
    StepFailed,
    StepOutcome,
    StoreUnknown,
    outcome_of,
)  # fmt: skip
from mloc_dagster.placement.local.rerun import add_rerun
from mloc_dagster.plan.digest import stage_digest
from mloc_dagster.plan.steps import Plan, Step
from mloc_dagster.sources import Cache, PullError, pull_dataset, pull_model
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.quantity import format_bytes
from mloc_dagster.spec.stage import StageSpec
from mloc_dagster.spec.task_types import known
from mloc_dagster.spec.taskfile import Stage
from mloc_dagster.store.manifest import declared_names, write_manifest
from mloc_dagster.store.results import Envelope, note_task, write_envelope
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
        line = json.dumps({"step": step.key, **progress}, default=str) + "\n"
        with suppress(OSError), path.open("a", encoding="utf-8") as file:  # such as a full disk: the work goes on
            file.write(line)
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
    placed = _placement(spec, run)
    if placed.refusal:
        raise StepFailed(f"{stage.name} {placed.refusal}", Cause.USER)
    given = inputs.gather(plan, stage, run.home, run.task_id)
    digest = stage_digest(stage, given.digests, placed.on_cpu)
    final = run.home.run_folder(run.task_id, stage.name)
    judge = partial(gate.judged, plan, stage, given.upstream, run.home)
    work = run.home.work / digest
    with _exclusive(work.with_suffix(".lock"), run.cancelled, report) as lock:
        atomic.restore(final)
        done = finished(final, digest)
        if done and (not run.fresh or done.metadata.get("run_id") in {run.run_id, *run.earlier}):
            judged = judge(done, again=False)
            if judged != done:
                write_envelope(final, judged)
                write_manifest(final, judged.task_id, declared_names(final))
            gate.record(run.home, judged)
            return outcome_of(stage, final, judged, None)
        note_task(run.home, plan.task.name, run.task_id)
        reusable = known()[spec.task_type].reusable and not run.fresh
        entry = ReuseIndex(run.home).lookup(digest) if reusable else None
        if entry is not None:
            envelope = reuse(stage, run, entry, digest, final, judge)
            gate.record(run.home, envelope)
            return outcome_of(stage, entry.folder, envelope, origin_of(entry))
        run = replace(run, fresh=run.fresh and not _is_of_task(work, f"{run.task_id}/{stage.name}"))
        if run.fresh or not _is_done(work):
            locks = tuple(one for one in (lock, run.lock) if one is not None)
            placed = _execute(plan, stage, run, given, placed, work, report, locks)
        add_rerun(plan, stage, given, work, final)
        envelope = _put_away(stage, run, work, final, digest, placed, given, judge)
        gate.record(run.home, envelope)
        return outcome_of(stage, final, envelope, None)


def _put_away(
    stage: Stage, run: RunInfo, work: Path, final: Path, digest: str, placed: Placement, given: inputs.Inputs,
    judge: Callable[[Envelope], Envelope],
) -> Envelope:  # fmt: skip
    try:
        return finish(stage, run, work, final, digest, placed, given, judge)
    except OSError as error:  # such as a full disk
        what = f"{stage.name} is done, but its result could not be put away: {error}"
        raise StepFailed(
            f"{what}\nThe next attempt goes on from there: make room in {run.home.root}", Cause.INTERNAL
        ) from None


def _is_of_task(work: Path, task_id: str) -> bool:
    """Whether what a work folder holds was stored by an earlier attempt of the same task."""
    return _job_of(work).get("task_id") == task_id


def _is_done(work: Path) -> bool:
    """Whether the work was done, and only putting it away failed or was interrupted."""
    try:
        json.loads((work / "result.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _job_of(work: Path) -> dict[str, Json]:
    try:
        found = json.loads((work / "job.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _placement(spec: StageSpec, run: RunInfo) -> Placement:
    if run.seats is not None and run.seats.each_its_own:
        return run.seats.placement(spec, run.on_cpu)
    available = inventory.gpus() if run.granted is None else run.granted
    return inventory.place(spec.resources, spec.enforce_cpu, run.on_cpu, available)


def _write_job(plan: Plan, stage: Stage, run: RunInfo, given: inputs.Inputs, placed: Placement, work: Path) -> Path:
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
    for name in ("result.json", "error.json"):  # of an earlier attempt; this one may die before it says anything
        (work / name).unlink(missing_ok=True)
    atomic.write_json(work / "job.json", job)
    return work / "job.json"


def _execute(
    plan: Plan, stage: Stage, run: RunInfo, given: inputs.Inputs, placed: Placement, work: Path, report: Report,
    locks: tuple[int, ...],
) -> Placement:  # fmt: skip
    """Do the work of a stage: in this process, in one of its own, or on another machine; returns where it was done."""
    from executors.registry import find

    job = _write_job(plan, stage, run, given, placed, work)
    if find(stage.spec.task_type).inline and not stage.spec.timeout_seconds:
        _execute_here(job)
        return placed
    try:
        patience = lost_after()
        grace_seconds()
    except ValueError as error:
        raise StepFailed(str(error), Cause.USER) from None
    if run.seats is None or not run.seats.fleet.engines:
        _execute_beside(stage, job, work, run, report, locks, patience, placed)
        return placed
    return _execute_anywhere(plan, stage, run, given, placed, work, report, locks, patience)


def _execute_anywhere(
    plan: Plan, stage: Stage, run: RunInfo, given: inputs.Inputs, placed: Placement, work: Path, report: Report,
    locks: tuple[int, ...], patience: float | None,
) -> Placement:  # fmt: skip
    """Do the work on the worker that the stage gets, unless an earlier run has it done, or going on, elsewhere."""
    from mloc_dagster.placement.remote import stages

    assert run.seats is not None
    errand = stages.errand_of(stage, run, work, run.seats)
    unknown, earlier = None, None
    try:
        earlier = stages.go_on(errand, run, run.seats, placed.on_cpu, report, patience)
    except StoreUnknown as error:  # costs nothing where the stage runs on this machine
        unknown = error
    if earlier is not None:
        _require_done(stage, earlier.ended, work, patience)
        return replace(placed, worker=earlier.worker, devices=earlier.devices)
    with run.seats.take(stage, placed.on_cpu, work, run.cancelled, report) as seat:
        placed = replace(placed, worker=seat.worker, devices=tuple(str(device.index) for device in seat.devices))
        job = _write_job(plan, stage, run, given, placed, work)
        if unknown is not None and seat.engine is not None:
            raise unknown
        if unknown is not None:
            report({"note": f"whether an earlier run has begun this elsewhere is not known: {unknown}"})
        if seat.engine is None:
            _execute_beside(stage, job, work, run, report, locks, patience, placed)
        else:
            errand = stages.errand_of(stage, run, work, run.seats)
            ended = stages.carry_out(errand, run.seats, seat, run, report, patience)
            _require_done(stage, ended, work, patience)
    return placed


def _execute_beside(
    stage: Stage, job: Path, work: Path, run: RunInfo, report: Report, locks: tuple[int, ...], patience: float | None,
    placed: Placement,
) -> None:  # fmt: skip
    """Do the work in a process group on this machine."""
    from executors.registry import find
    from executors.warm.wanted import loads_torch

    devices = () if placed.on_cpu else placed.devices
    torch = loads_torch(find(stage.spec.task_type), stage.spec, devices)
    killed = diagnosis.oom_kills()
    ended = process.run_job(
        job,
        work / "logs",
        report=report,
        cancelled=run.cancelled,
        timeout=stage.spec.timeout_seconds,
        lost_after=patience,
        memory_bytes=_most_memory(stage),
        locks=locks,
        warm=("gpu" if devices else "cpu") if torch else None,
    )
    if diagnosis.oom_kills() > killed and ended.code:
        ended = replace(ended, machine_out_of_memory=True)
    _require_done(stage, ended, work, patience)


def _require_done(stage: Stage, ended: process.Ended, work: Path, patience: float | None) -> None:
    """Raise StepCancelled or StepFailed unless the work has left a result."""
    if ended.cancelled:
        raise StepCancelled(f"{stage.name} was cancelled; what it had stored is continued by the next run")
    if ended.timed_out:
        limit = f"timeoutSeconds {stage.spec.timeout_seconds:g}"
        raise StepFailed(f"{stage.name} ran longer than {limit} and was ended", Cause.TIMED_OUT)
    if ended.silent:
        raise StepFailed(f"{stage.name} {_SILENT.format(patience)}", Cause.WORKER_LOST)
    if ended.code == 0 and (work / "result.json").is_file():
        return
    kernel_killed = ended.out_of_memory or ended.machine_out_of_memory
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
    return StepFailed("\n".join(filter(None, parts)), cause, again=error["kind"] != "exhausted")


def _ending(stage: Stage, ended: process.Ended, cause: Cause) -> str:
    if cause is Cause.OUT_OF_MEMORY:
        most = _most_memory(stage)
        bound = f"resources.hardware.memory {format_bytes(most)}" if most else "its worker has for stages"
        why = f"it needs more than {bound}" if ended.out_of_memory else "the machine was out of memory"
        return f"was killed by the kernel: {why}. {diagnosis.MEMORY_HINT}"
    code = ended.code
    ending = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"{ending} (from outside)" if cause is Cause.WORKER_LOST else ending


def _publish(plan: Plan, stage: Stage, run: RunInfo) -> StepOutcome:
    from mloc_dagster.delivery import DeliveryError
    from mloc_dagster.placement.local.publish import publish
    from mloc_dagster.provenance.keys import KeyUnusable

    try:
        metadata, envelope = publish(plan, stage, run.home, run.task_id)
    except DeliveryError as error:
        raise StepFailed(str(error), Cause.DELIVERY) from None
    except KeyUnusable as error:
        raise StepFailed(str(error), Cause.USER) from None
    folder = run.home.run_folder(run.task_id, stage.name)
    return StepOutcome(metadata, str(envelope.metadata.get("digest")), folder=folder)


@contextmanager
def _exclusive(path: Path, cancelled: Callable[[], bool], report: Report) -> Iterator[int]:
    """Hold the lock of a digest and give its file descriptor.

    Two runs never do the same work at once; the second then reuses it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a") as file:
            _lock(file, cancelled, report)
            if atomic.is_at(file, path):
                yield file.fileno()
                return


def _lock(file: IO[str], cancelled: Callable[[], bool], report: Report) -> None:
    told = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if cancelled():
                raise StepCancelled("cancelled while waiting for another run of the same work") from None
            if not told:
                report({"note": "another run does the same work; its result will be used here"})
            told = True
            time.sleep(0.1)


__all__ = ["Check", "RunInfo", "StepCancelled", "StepFailed", "StepOutcome", "run_step"]
