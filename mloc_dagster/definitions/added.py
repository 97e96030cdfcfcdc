"""Task files that were added to a deployment: they run at their times, and when what they wait for comes."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from mloc_dagster.definitions.submit import store_spec
from mloc_dagster.files.atomic import write_text
from mloc_dagster.spec import TaskFile, load_text
from mloc_dagster.spec.load import with_base
from mloc_dagster.store.home import Home


class NotAdded(Exception):
    """A task file that cannot be added; the message says why."""


class Added(BaseModel):
    """One task file, as it was when it was added; `added_at` in seconds since the epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    job: str
    text: str
    added_at: float

    @property
    def schedule_name(self) -> str:
        """The name of its schedule in Dagster."""
        return f"{_safe(self.task)}__schedule"

    @property
    def sensor_name(self) -> str:
        """The name of its sensor in Dagster."""
        return f"{_safe(self.task)}__triggers"

    def load(self) -> TaskFile:
        """Return the task file; raises SpecError when this release does not take it any more."""
        return load_text(self.text, file=self.task, name=self.task)


class AddedFiles:
    """The files of a home; what was written survives a power failure."""

    def __init__(self, home: Home) -> None:
        self._home, self._folder = home, home.schedules

    def add(self, task: TaskFile) -> Added:
        """Keep a task file in place of an earlier one of the same name; raises NotAdded."""
        path = self._path(task.name)
        before = _read(path)
        if before is not None and before.task != task.name:
            raise NotAdded(
                f"{task.name} and {before.task}, which was added before, would have the same name in Dagster"
            )
        job = store_spec(self._home, task)
        folder = task.path.resolve().parent if task.path else Path.cwd()
        added = Added(task=task.name, job=job, text=with_base(task.text, folder), added_at=time.time())
        write_text(path, added.model_dump_json(indent=1) + "\n")
        return added

    def get(self, task: str) -> Added | None:
        """Return the file of a task, or None."""
        found = _read(self._path(task))
        return found if found is not None and found.task == task else None

    def remove(self, task: str) -> None:
        """Forget a task; its runs stay."""
        self._path(task).unlink(missing_ok=True)

    def __iter__(self) -> Iterator[Added]:
        """All of them, by name; their jobs are there, also where somebody removed the submitted copies."""
        for path in sorted(self._folder.glob("*.json")):
            if (added := _read(path)) is not None:
                kept = self._home.specs / f"{added.job}.yaml"
                if not kept.is_file():
                    write_text(kept, added.text)
                yield added

    def stamp(self) -> frozenset[tuple[str, int]]:
        """Return what changes when one is added, changed or removed."""
        return frozenset((path.name, path.stat().st_mtime_ns) for path in self._folder.glob("*.json"))

    def _path(self, task: str) -> Path:
        return self._folder / f"{_safe(task)}.json"


def _read(path: Path) -> Added | None:
    try:
        return Added.model_validate_json(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _safe(task: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", task)
