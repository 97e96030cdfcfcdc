"""What must hold when all is over; each fault begins with the name of what it breaks."""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus, EventLogEntry, TextMetadataValue

from benchmarks.soak.tasks import BYTES, Task
from mloc_dagster.definitions.execution import TASK_ID
from mloc_dagster.placement.ledger import Ledger
from mloc_dagster.store.digests import file_digest
from mloc_dagster.store.home import Home
from mloc_dagster.store.results import RESPONSES, read_envelope

_ENDS = {DagsterEventType.RUN_SUCCESS, DagsterEventType.RUN_FAILURE, DagsterEventType.RUN_CANCELED}
_STATUS = {
    DagsterEventType.RUN_SUCCESS: DagsterRunStatus.SUCCESS,
    DagsterEventType.RUN_FAILURE: DagsterRunStatus.FAILURE,
    DagsterEventType.RUN_CANCELED: DagsterRunStatus.CANCELED,
}
_HALF = re.compile(r"^\..+|.*\.(partial|tmp|new|old|replaced|publish)$")
_KNOWN_HIDDEN = re.compile(r"\.(lock|claimed|nux|logs_queue|db(-wal|-shm)?)$")
"""Hidden files of Dagster and of the inbox that are to stay."""


def faults(home: Home, instance: DagsterInstance, tasks: Iterable[Task], journal: Path) -> Iterator[str]:
    """Yield all that does not hold of a home in which nothing runs any more."""
    known = list(tasks)
    for task in known:
        yield from _runs(instance, task)
        yield from _delivery(home, instance, task)
    yield from (f"work: {path.name} was done twice at the same time" for path in _twice(journal))
    yield from (f"lease: {lease.run_id} still holds {lease.worker}" for lease in _leases(instance))
    yield from _databases(home)
    yield from _half_files(home)


def cause_of(instance: DagsterInstance, run_id: str) -> str:
    """Return why a run failed, or nothing when it does not say."""
    events = [entry.dagster_event for entry in instance.all_logs(run_id) if entry.dagster_event]
    said = [event.message or "" for event in events if event.is_failure or event.event_type in _ENDS]
    for event in events:
        if event.is_step_failure and event.step_failure_data.error:
            said.append(event.step_failure_data.error.to_string())
    return "\n".join(text for text in said if text)


def _runs(instance: DagsterInstance, task: Task) -> Iterator[str]:
    finished: set[str] = set()
    for position, run_id in enumerate(task.runs):
        run = instance.get_run_by_id(run_id)
        if run is None or not run.is_finished:
            yield f"end: {task.name} {run_id} is {run.status.value if run else 'gone'}"
            continue
        last = position == len(task.runs) - 1
        wanted = DagsterRunStatus.FAILURE if task.fault else DagsterRunStatus.SUCCESS
        cause = cause_of(instance, run_id)
        if last and run.status is not wanted:
            yield f"end: {task.name} {run_id} is {run.status.value}, not {wanted.value}: {cause}"
        if run.status is DagsterRunStatus.CANCELED:
            yield f"end: {task.name} {run_id} was cancelled, which nobody asked for: {cause}"
        if run.status is DagsterRunStatus.FAILURE and (len(cause) < 20 or (last and task.fault not in cause)):
            yield f"cause: {task.name} {run_id} failed without saying why: {cause!r}"
        entries = instance.all_logs(run_id)
        yield from _events(task, run_id, run.status, entries, finished)
        finished |= {
            entry.step_key for entry in entries if _is(entry, DagsterEventType.STEP_SUCCESS) and entry.step_key
        }


def _events(
    task: Task, run_id: str, status: DagsterRunStatus, entries: Iterable[EventLogEntry], finished: set[str]
) -> Iterator[str]:
    """What one run says: one end, each step done once at most, nothing done again that an earlier run had done."""
    known = list(entries)
    ends = [event.event_type for entry in known if (event := entry.dagster_event) and event.event_type in _ENDS]
    if [_STATUS[end] for end in ends] != [status]:
        yield f"events: {task.name} {run_id} is {status.value}, but its events end with {[end.value for end in ends]}"
    done = Counter(entry.step_key for entry in known if _is(entry, DagsterEventType.STEP_SUCCESS))
    made = Counter(entry.step_key for entry in known if _is(entry, DagsterEventType.ASSET_MATERIALIZATION))
    again = Counter(entry.step_key for entry in known if _is(entry, DagsterEventType.STEP_RESTARTED))
    yield from (f"events: {task.name} {run_id} {key} succeeded {n} times" for key, n in done.items() if n > 1)
    for key, n in made.items():
        if n > 1 + again[key]:  # a step may be killed after it has said what it made, and before it said that it ended
            yield f"events: {task.name} {run_id} {key} was materialized {n} times, and begun {1 + again[key]} times"
    for entry in known:
        if _is(entry, DagsterEventType.ASSET_MATERIALIZATION) and entry.step_key in finished:
            metadata = entry.get_dagster_event().step_materialization_data.materialization.metadata
            done_here = metadata.get("run_id") == TextMetadataValue(run_id)
            if done_here and "reused_from" not in metadata:
                yield f"reuse: {task.name} {run_id} did {entry.step_key} again, which an earlier run had finished"


def _is(entry: EventLogEntry, kind: DagsterEventType) -> bool:
    return entry.dagster_event is not None and entry.dagster_event.event_type is kind


def _delivery(home: Home, instance: DagsterInstance, task: Task) -> Iterator[str]:
    """A task that succeeded lies where it was to be delivered, whole; one that failed does not."""
    place = home.results / "delivered" / task.name
    if not task.delivered:
        return
    if task.fault:
        if place.exists():
            yield f"delivery: {task.name} failed, and yet there is {place}"
        return
    try:
        envelope = read_envelope(place / RESPONSES)
        manifest = json.loads((place / "manifest.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        yield f"delivery: {task.name} is not whole: {error}"
        return
    run = instance.get_run_by_id(task.runs[-1])
    if run is not None and envelope.task_id.partition("/")[0] != run.tags[TASK_ID]:
        yield f"delivery: {task.name} is of {envelope.task_id}, not of its last run {run.run_id}"
    for item in manifest["entries"]:
        path = place / item["path"]
        if item["status"] != "present" or not path.exists():
            yield f"delivery: {task.name} lacks {item['path']}"
        elif item["type"] == "file" and file_digest(path).removeprefix("sha256:") != item["sha256"]:
            yield f"delivery: {task.name} {item['path']} is not what its manifest says"
    work = place / "work.bin"
    if work.exists() and work.read_bytes() != f"{task.name}\n".encode() * (BYTES // 10):
        yield f"delivery: {task.name} work.bin is not what was made"


def _twice(journal: Path) -> Iterator[Path]:
    for path in sorted(journal.iterdir()):
        if "twice" in path.read_text():
            yield path


def _leases(instance: DagsterInstance) -> Iterator:
    yield from Ledger.of_instance(instance).snapshot()[1]


def _databases(home: Home) -> Iterator[str]:
    for path in sorted(home.root.rglob("*.db")):
        connection = sqlite3.connect(path)
        try:
            [(said,)] = connection.execute("PRAGMA integrity_check(1)").fetchall()
        except sqlite3.Error as error:
            said = str(error)
        finally:
            connection.close()
        if said != "ok":
            yield f"database: {path}: {said}"


def _half_files(home: Home) -> Iterator[str]:
    for path in sorted(home.root.rglob("*")):
        if _HALF.match(path.name) and not _KNOWN_HIDDEN.match(path.name):
            yield f"half file: {path}"
    for path in sorted(home.work.glob("*/job.json")):
        task = json.loads(path.read_text("utf-8"))["task_name"]
        if not (path.parent / "error.json").exists():
            yield f"half file: {path.parent}, of {task}"
