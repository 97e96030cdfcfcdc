"""Carries one stage out on another machine: found, adopted or started there, followed, and its result brought back."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from executors.job import Job
from executors.remote import fence, messages
from executors.remote.document import JOB, RESULT, RemoteResult, result_name
from executors.remote.store import Store, StoreError, Unusable
from executors.stopping import grace_seconds
from mloc_dagster.files.atomic import write_json
from mloc_dagster.placement.failures.cause import Cause
from mloc_dagster.placement.failures.silence import Silence
from mloc_dagster.placement.local.outcome import StepFailed, StoreUnknown
from mloc_dagster.placement.local.process import Ended, last_lines
from mloc_dagster.placement.remote.carrier import Carried, Carrier, CarrierError, Ending, Order, Unreachable
from mloc_dagster.placement.remote.follow import Follower
from mloc_dagster.placement.remote.holding import Elsewhere, give_up, hold
from mloc_dagster.placement.remote.ship import REMOTE_ROOT, collect, environment_names, remote_job
from mloc_dagster.placement.workers.need import replicas_of
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.taskfile import Stage
from mloc_dagster.store.home import Home
from mloc_dagster.telemetry.traceparent import VARIABLE

SYNC = "MLOC_SYNC_SECONDS"
"""Seconds between two pushes of unfinished work (60)."""
_POLL_SECONDS = 0.1
_LAST_SECONDS = 3.0
_AGAIN_SECONDS = 1.0
_LOOK_SECONDS = 30.0
"""So long all workers together are waited for when it is asked what they do."""
_GIVEN_UP = Ending(143)
"""Of an attempt that saw that another one holds its work."""
_PASSED_ON = ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", VARIABLE)

Report = Callable[[dict[str, Json]], None]


@dataclass(frozen=True)
class Place:
    """Where a stage may run: the carrier of its worker, what it has there, and the environment that it gets."""

    worker: str
    carrier: Carrier
    cpu: int | None
    share: int
    memory: int
    devices: tuple[int, ...]
    environment: Mapping[str, str]
    replicas: int = 1
    """Containers that train as one; cores and memory are those of each, the devices those of all."""


@dataclass(frozen=True)
class Errand:
    """One stage of one task. `work` is the digest of the stage."""

    store: Store
    stage: Stage
    job: Job
    work: str
    task_id: str
    run_id: str
    home: Home

    @property
    def identity(self) -> str:
        """What all attempts at this stage of this task have in common."""
        return f"jobs/{self.work}/{self.task_id}"

    @property
    def elsewhere(self) -> Elsewhere:
        """What is noted of it while it goes on elsewhere."""
        return Elsewhere(store=self.store.url, identity=self.identity, run_id=self.run_id)

    @property
    def replicas(self) -> int:
        """How many containers train as one."""
        return replicas_of(self.stage.spec)

    @property
    def folder(self) -> Path:
        """The work folder on this machine."""
        return self.job.out


def finished(errand: Errand, report: Report) -> bool:
    """Bring the result of an attempt that ended well while nobody was there to see it; returns whether there is one.

    A result of which something is lost counts for nothing. Raises StepFailed.
    """
    try:
        for attempt in errand.store.names(errand.identity):
            try:
                result = errand.store.read(f"{errand.identity}/{attempt}/{RESULT}", RemoteResult)
                if result is not None and result.code == 0:
                    collect(errand.store, result, errand.folder)
                    return True
            except Unusable as error:
                what = f"{errand.stage.name} was finished by the attempt {attempt}, but its result cannot be read"
                report({"note": f"{what}: {error}"})
    except StoreError as error:
        raise StoreUnknown(f"{errand.stage.name}: {error}", Cause.INTERNAL) from None
    return False


def adopt(
    errand: Errand, carriers: Mapping[str, Carrier], *, report: Report, cancelled: Callable[[], bool],
    lost_after: float | None,
) -> Carried | None:  # fmt: skip
    """Return an attempt of an earlier run that still works, and has the work from now on.

    A worker that holds the work and does not answer is waited for, as long as a silent attempt is (`lost_after`, in
    seconds). Others that work, too, since a machine did not answer for long, are ended; those that were never started
    are cleared away. Raises StepFailed.
    """
    try:
        held = fence.holder(errand.store, errand.identity)
    except StoreError as error:
        raise StoreUnknown(f"{errand.stage.name}: {error}", Cause.INTERNAL) from None
    working = _awaited(errand, carriers, held.worker if held else "", report, cancelled, lost_after)
    if not working:
        return None
    chosen = next((one for one in working if held and one.attempt == held.attempt), working[0])
    try:
        hold(errand.store, errand.folder, errand.elsewhere, chosen.attempt, chosen.worker)
    except StoreError as error:
        raise _store_failed(errand, error) from None
    for other in working:
        if other.attempt != chosen.attempt:
            _end(other)
    return chosen


def end_others(errand: Errand, carriers: Mapping[str, Carrier], attempt: str) -> None:
    """End what is left of attempts but this one, on machines that answer again; costs nothing where it was the only."""
    with suppress(StoreError):
        if len(errand.store.names(errand.identity)) < 2:
            return
    for carrier in carriers.values():
        with suppress(Unreachable):
            for carried in carrier.find(errand.identity):
                if carried.attempt != attempt and (carried.ending() is None or carried.ending() == _GIVEN_UP):
                    _end(carried)


def start(errand: Errand, place: Place) -> Carried:
    """Send a stage and start it; raises StepFailed."""
    attempt = uuid.uuid4().hex[:12]
    key, carrier, stage = f"{errand.identity}/{attempt}", place.carrier, errand.stage
    try:
        document = remote_job(
            errand.store, stage, errand.job, errand.work, errand.home,
            timeout=stage.spec.timeout_seconds, grace=max(1.0, carrier.grace - 3), sync=_sync_seconds(),
        )  # fmt: skip
        errand.store.write(f"{key}/{JOB}", document)
        hold(errand.store, errand.folder, errand.elsewhere, attempt, place.worker)
    except StoreError as error:
        raise _store_failed(errand, error) from None
    order = Order(
        job=errand.identity, attempt=attempt, store=errand.store.url, key=key,
        environment=_environment(errand, place), cpu=place.cpu, share=place.share, memory=place.memory,
        devices=place.devices, replicas=place.replicas, timeout=stage.spec.timeout_seconds,
        labels={"mloc.run": errand.run_id, "mloc.step": f"{errand.job.task_name}/{stage.name}",
                "mloc.worker": place.worker},
    )  # fmt: skip
    try:
        carried = carrier.start(order)
    except CarrierError as error:
        give_up(errand.store, errand.folder, errand.elsewhere)
        cause = Cause.USER if error.lasting else Cause.INTERNAL
        raise StepFailed(f"{stage.name} cannot be started on {place.worker}: {error}", cause) from None
    except Unreachable as error:
        give_up(errand.store, errand.folder, errand.elsewhere)
        raise StepFailed(f"{stage.name}: {place.worker} does not answer: {error}", Cause.WORKER_LOST) from None
    if carried.attempt != attempt:  # it was there already
        try:
            hold(errand.store, errand.folder, errand.elsewhere, carried.attempt, carried.worker)
        except StoreError as error:
            _end(carried)
            raise _store_failed(errand, error) from None
    return carried


def follow(
    errand: Errand, carried: Carried, note: str, *, report: Report, cancelled: Callable[[], bool],
    lost: Callable[[], str], lost_after: float | None,
) -> Ended:  # fmt: skip
    """Follow an attempt to its end and bring its result back; returns how it ended as if it had run here.

    `note` is told first. Ends it when `cancelled` turns true, when `lost` gives a reason, or when this call is
    interrupted. Raises StepFailed when the machine, its engine or the container failed, not the stage.
    """
    log = errand.folder / "logs" / "stdout.log"
    patience, follower = _to_end_seconds(lost_after), None
    try:
        report({"note": note})
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")  # it is read from the beginning, also when an earlier run had read a part
        follower, silence = Follower(carried, log), Silence(lost_after)
        while not follower.over(_POLL_SECONDS):
            told = follower.take()
            _report(told, report)
            if cancelled():
                _stop(carried, follower, report, patience)
                return Ended(143, cancelled=True)
            if reason := lost():
                raise StepFailed(f"{errand.stage.name}: {reason}", Cause.WORKER_LOST)
            if silence.over(bool(told)):
                patience = 0.0  # it was waited for already
                return _silent(errand, carried, follower)
        _report(follower.take(), report)
        ending = _ending(errand, carried, follower)
    except BaseException:
        _stop(carried, follower, report, patience)
        raise
    finally:
        if follower is not None:
            follower.leave()
        give_up(errand.store, errand.folder, errand.elsewhere)
    return _ended(errand, carried, ending, log)


def _awaited(
    errand: Errand, carriers: Mapping[str, Carrier], holder: str, report: Report, cancelled: Callable[[], bool],
    lost_after: float | None,
) -> Sequence[Carried]:  # fmt: skip
    """Attempts that work; while there are none, the worker that holds the work is asked until it answers."""
    until = time.monotonic() + lost_after if lost_after is not None else None
    told = False
    while True:
        working, away = _working(errand, carriers)
        late = until is not None and time.monotonic() > until
        if working or holder not in away or late or cancelled():
            return working
        if not told:
            report({"note": f"{errand.stage.name} may go on on {holder}, which does not answer; it is waited for"})
        told = True
        time.sleep(_AGAIN_SECONDS)


def _working(errand: Errand, carriers: Mapping[str, Carrier]) -> tuple[list[Carried], set[str]]:
    """Attempts that work, and the workers that do not answer; all are asked at the same time."""
    if not carriers:
        return [], set()
    pool = ThreadPoolExecutor(len(carriers))
    asked = {pool.submit(_working_on, carrier, errand.identity): worker for worker, carrier in carriers.items()}
    done, late = wait(asked, _LOOK_SECONDS)
    pool.shutdown(wait=False)
    working, away = [], {asked[one] for one in late}
    for one in done:
        try:
            working.extend(one.result())
        except Unreachable:
            away.add(asked[one])
    return working, away


def _working_on(carrier: Carrier, identity: str) -> list[Carried]:
    working = []
    for carried in carrier.find(identity):
        ending = carried.ending()
        if ending is None:
            working.append(carried)
        elif ending.code is None:
            carried.remove(failed=False)
    return working


def _ending(errand: Errand, carried: Carried, follower: Follower) -> Ending:
    if follower.ending is None:
        why = f"{type(follower.failure).__name__}: {follower.failure}"
        what = f"{errand.stage.name}: {carried.place} cannot be followed and is ended: {why}"
        raise StepFailed(what, Cause.INTERNAL) from follower.failure
    return follower.ending


def _ended(errand: Errand, carried: Carried, ending: Ending, log: Path) -> Ended:
    try:
        result = _result(errand, carried.attempt)
    except StoreError as error:
        raise _store_failed(errand, error) from None
    if result is None or (result.stopped and not result.timed_out):
        _remove(carried, failed=result is None)
        raise _broken_off(errand, carried, ending, log)
    if result.code == 0:
        try:
            collect(errand.store, result, errand.folder)
        except StoreError as error:
            raise _store_failed(errand, error) from None
        _remove(carried, failed=False)
        return Ended(0)
    if result.error is not None:
        write_json(errand.folder / "error.json", result.error)
    else:  # what an earlier attempt said of its own failure
        (errand.folder / "error.json").unlink(missing_ok=True)
    _remove(carried, failed=True)
    killed = result.out_of_memory or ending.out_of_memory
    return Ended(result.code, timed_out=result.timed_out, out_of_memory=killed)


def _result(errand: Errand, attempt: str) -> RemoteResult | None:
    """The result of an attempt; of several replicas that of the first, or of the one for which all failed.

    None: one of them left none, so it was killed, and the others failed for that.
    """
    key = f"{errand.identity}/{attempt}"
    first = errand.store.read(f"{key}/{RESULT}", RemoteResult)
    if errand.replicas == 1 or (first is not None and first.code == 0):
        return first
    others = [errand.store.read(f"{key}/{result_name(rank)}", RemoteResult) for rank in range(1, errand.replicas)]
    told = [one for one in (first, *others) if one is not None]
    for says_why in (lambda one: one.out_of_memory, lambda one: one.timed_out, _is_users_fault):
        found = next(filter(says_why, told), None)
        if found is not None:
            return found
    if len(told) < errand.replicas or any(one.stopped for one in told):
        return None
    return next((one for one in told if one.code), first)


def _is_users_fault(result: RemoteResult) -> bool:
    return (result.error or {}).get("kind") == "user"


def _broken_off(errand: Errand, carried: Carried, ending: Ending, log: Path) -> StepFailed:
    """Why there is no result, as far as the other side tells."""
    name, where = errand.stage.name, carried.place
    if ending.out_of_memory:
        return StepFailed(f"{name}: {where} was killed by the kernel: out of memory (OOMKilled)", Cause.OUT_OF_MEMORY)
    if ending.cause is not None:
        return StepFailed(f"{name}: {where} {ending.words}", ending.cause)
    if ending.code is None:
        return StepFailed(f"{name}: {where} is gone: {ending.words or 'it was removed'}", Cause.WORKER_LOST)
    if ending.code in (137, 143, 255):
        what = f"was killed from outside (exit code {ending.code}{f', {ending.words}' if ending.words else ''})"
        return StepFailed(f"{name}: {where} {what}; what it had stored is continued", Cause.WORKER_LOST)
    words = f": {ending.words}" if ending.words else ""
    return StepFailed(
        f"{name}: {where} ended with exit code {ending.code}{words}\nlog: {log}\n{last_lines(log)}", Cause.INTERNAL
    )


def _silent(errand: Errand, carried: Carried, follower: Follower) -> Ended:
    if follower.unreachable:
        why = f"{carried.place} cannot be asked: {follower.unreachable}"
        raise StepFailed(f"{errand.stage.name}: {why}", Cause.WORKER_LOST)
    with suppress(Unreachable):
        carried.kill()
        follower.over(_LAST_SECONDS)
        carried.remove(failed=True)
    return Ended(137, silent=True)


def _to_end_seconds(lost_after: float | None) -> float:
    """How long a machine that does not answer is asked to end an attempt; the run is killed after its grace."""
    grace = grace_seconds()
    return grace if lost_after is None else min(grace, lost_after)


def _stop(carried: Carried, follower: Follower | None, report: Report, patience: float) -> None:
    """End an attempt and read its last words; it is asked again for so many seconds while it does not answer."""
    until, pause = time.monotonic() + patience, _AGAIN_SECONDS
    while True:
        try:
            carried.stop()
            if follower is not None:
                follower.over(_LAST_SECONDS)
            return carried.remove(failed=False)
        except Unreachable as error:
            if time.monotonic() + pause > until:
                return report({"note": f"{carried.place} may still run, and ends by itself when it can: {error}"})
        time.sleep(pause)
        pause *= 2


def _end(carried: Carried) -> None:
    """End an attempt that another one has taken the place of; one that does not answer ends by itself."""
    with suppress(Unreachable):
        carried.stop()
        carried.remove(failed=False)


def _remove(carried: Carried, *, failed: bool) -> None:
    with suppress(Unreachable):  # it is cleared away before the next one is started there
        carried.remove(failed=failed)


def _report(told: list[tuple[str, Json]], report: Report) -> None:
    for kind, value in told:
        if kind == messages.PROGRESS and isinstance(value, dict):
            report(value)
        elif kind == messages.NOTE:
            report({"note": str(value)})


def _environment(errand: Errand, place: Place) -> dict[str, str]:
    """What the step is given: settings, what its worker declares, and the secrets that the stage refers to."""
    names = (*_PASSED_ON, *sorted(environment_names(errand.job.raw)))
    asked = {name: os.environ[name] for name in names if name in os.environ}
    own = {"MLOC_REMOTE_ROOT": REMOTE_ROOT, "MLOC_ENGINE_IDLE": "0", "PYTHONUNBUFFERED": "1"}
    return {**asked, **place.environment, **own}


def _sync_seconds() -> float:
    text = os.environ.get(SYNC) or "60"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds < float("inf"):
        raise StepFailed(f"{SYNC} is {text!r}: write seconds, 1 or more", Cause.USER)
    return seconds


def _store_failed(errand: Errand, error: StoreError) -> StepFailed:
    return StepFailed(f"{errand.stage.name}: {error}", Cause.INTERNAL)
