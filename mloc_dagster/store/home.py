"""The folder of all state, and the places in it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_PLAIN = re.compile(r"\w[\w.-]{0,199}")
_MOUNTS = ("mnt", "shared", "artifacts", "ignored", "results")


@dataclass(frozen=True)
class Home:
    """`MLOC_HOME` (default `./.mloc`)."""

    root: Path

    @classmethod
    def current(cls) -> Home:
        """Return the home that the environment names."""
        return cls(Path(os.environ.get("MLOC_HOME") or ".mloc").expanduser().resolve())

    @property
    def results(self) -> Path:
        """Run folders: `<task id>/<stage>/`."""
        return self.root / "results"

    @property
    def work(self) -> Path:
        """Stages that are not finished, by digest; their checkpoints survive here."""
        return self.root / "work"

    @property
    def cache(self) -> Path:
        """Pulled models and data sets."""
        return self.root / "cache"

    @property
    def specs(self) -> Path:
        """Submitted task files."""
        return self.root / "specs"

    @property
    def schedules(self) -> Path:
        """Task files that run by themselves."""
        return self.root / "schedules"

    @property
    def index(self) -> Path:
        """Digests of finished stages."""
        return self.root / "index"

    @property
    def inbox(self) -> Path:
        """Task files dropped here are run."""
        return self.root / "inbox"

    @property
    def logs(self) -> Path:
        """Logs of run workers, `<run id>.log`."""
        return self.root / "logs"

    @property
    def dagster(self) -> Path:
        """Dagster's own folder (DAGSTER_HOME)."""
        return self.root / "dagster"

    def run_folder(self, task_id: str, stage: str) -> Path:
        """Return the folder of one stage of one task; raises ValueError for an id that is no plain name."""
        if not _PLAIN.fullmatch(task_id):
            raise ValueError(f"{task_id[:80]!r} is no task id")
        return self.results / task_id / stage

    def resolve_inside(self, logical: str) -> Path:
        """Return where a logical path of `output.destination.path` lies inside the results folder.

        `./x`, `/ignored/x`, `/mnt/x`, `/shared/x` and `/artifacts/x` are all `x`. Raises ValueError for `..`.
        """
        parts = [part for part in logical.replace("\\", "/").split("/") if part not in ("", ".")]
        if ".." in parts or any("\0" in part for part in parts):
            raise ValueError(f"{logical!r} leaves the results folder; remove ..")
        if logical.startswith("/") and len(parts) > 1 and parts[0] in _MOUNTS:
            parts = parts[1:]
        if not parts:
            raise ValueError(f"{logical!r} names no folder; write a name such as my-results")
        return self.results.joinpath(*parts)
