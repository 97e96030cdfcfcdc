"""What a task's steps wrote, line by line as it comes: Dagster's events, then the stages' own output."""

from __future__ import annotations

import codecs
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dagster import DagsterInstance

from mloc_dagster.definitions.execution import task_id_of
from mloc_dagster.files.links import open_inside
from mloc_dagster.store.home import Home

_BLOCK = 1 << 16
"""Bytes of a stage's log that are read at a time."""
_LONGEST_LINE = 1 << 16
_MOST_EVENTS = 1000


def stages_of_run(instance: DagsterInstance, run_id: str) -> set[str]:
    """Return the names of a run's steps without the task's; none where Dagster has no plan of it."""
    run = instance.get_run_by_id(run_id)
    if run is None or run.execution_plan_snapshot_id is None:
        return set()
    steps = instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id).steps
    return {step.key.rpartition("__")[2] for step in steps}


class TaskLog:
    """The log of one run; each call of `new` goes on where the one before stopped.

    A run that goes on with another's task has that task's output: what its finished stages wrote is there too.
    """

    def __init__(self, instance: DagsterInstance, home: Home, run_id: str, stage: str | None = None) -> None:
        self._instance, self._home, self._run_id, self._stage = instance, home, run_id, stage
        self._cursor: str | None = None
        self._task_id: str | None = None
        self._tails: dict[str, _Tail] = {}
        self._jobs: dict[Path, tuple[int, str]] = {}

    def new(self, *, last: bool = False) -> Iterator[str]:
        """Yield the lines that came since the last call, without their ends; with `last` also one that has no end."""
        yield from self._events()
        for stage, path in self._outputs():
            if self._stage in (None, stage):
                tail = self._tails.setdefault(stage, _Tail())
                yield from (f"{stage} | {line}" for line in tail.lines(path, self._home.root, last))

    def _events(self) -> Iterator[str]:
        while self._stage is None:
            found = self._instance.get_records_for_run(self._run_id, cursor=self._cursor, limit=_MOST_EVENTS)
            self._cursor = found.cursor
            for record in found.records:
                entry = record.event_log_entry
                step = f"{entry.step_key} " if entry.step_key else ""
                moment = time.strftime("%H:%M:%S", time.localtime(entry.timestamp))
                kind = f"{entry.dagster_event_type.value} " if entry.dagster_event_type else ""
                yield f"{moment} {kind}{step}{entry.user_message}"
            if not found.has_more:
                return

    def _outputs(self) -> list[tuple[str, Path]]:
        """The stages' logs: in the run folders, and in the work folders of what goes on."""
        task_id = self._task()
        found = {path.parts[-3]: path for path in self._home.results.glob(f"{task_id}/*/logs/stdout.log")}
        for job in self._home.work.glob("*/job.json"):
            owner, _, stage = self._job(job).partition("/")
            log = job.parent / "logs" / "stdout.log"
            if owner == task_id and log.exists():
                found.setdefault(stage, log)
        return sorted((stage, path) for stage, path in found.items() if not stage.startswith("."))

    def _task(self) -> str:
        if self._task_id is None:
            run = self._instance.get_run_by_id(self._run_id)
            if run is None:
                return self._run_id
            self._task_id = task_id_of(self._instance, run)
        return self._task_id

    def _job(self, path: Path) -> str:
        """Whose work a work folder holds; read again only when it changed."""
        try:
            changed = path.stat().st_mtime_ns
            if path not in self._jobs or self._jobs[path][0] != changed:
                self._jobs[path] = changed, str(json.loads(path.read_text("utf-8"))["task_id"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        return self._jobs[path][1]


@dataclass
class _Tail:
    """How far a stage's log was read; one that moved to its run folder is not told twice."""

    place: int = 0
    rest: str = ""
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def lines(self, path: Path, root: Path, last: bool) -> Iterator[str]:
        """Yield what is new, by whole lines; where links lead out of `root`, nothing."""
        try:
            with open_inside(path, root) as file:
                if file.seek(0, 2) < self.place:  # another attempt began it anew
                    self.place, self.rest = 0, ""
                    self.decoder.reset()
                file.seek(self.place)
                while block := file.read(_BLOCK):
                    self.place += len(block)
                    yield from self._whole(self.decoder.decode(block))
        except FileNotFoundError:  # it moves just now; the next call finds it
            return
        if last and (left := self.rest + self.decoder.decode(b"", final=True)):
            self.rest = ""
            yield from left.splitlines()

    def _whole(self, text: str) -> Iterator[str]:
        found = (self.rest + text).splitlines(keepends=True)
        open_end = found and (found[-1].endswith("\r") or found[-1].splitlines()[0] == found[-1])
        self.rest = found.pop() if open_end and len(found[-1]) < _LONGEST_LINE else ""
        yield from (line.splitlines()[0] for line in found)
