"""Job names of task files: made from the path alone, so that a job is found without reading other files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_SUFFIXES = (".yaml", ".yml")


def job_name(relative: Path) -> str:
    """Return the job of a task file, from its path below the folder of task files: `quickstart/hello.yaml` → `quickstart__hello`."""
    parts = relative.with_suffix("").parts
    return "__".join(re.sub(r"[^A-Za-z0-9_]", "_", part) for part in parts)


def task_files(root: Path) -> Iterator[Path]:
    """Yield the task files below a folder, sorted; folders and files that start with `.` or `_` are passed over."""
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith((".", "_")) for part in path.relative_to(root).parts)
        if path.suffix in _SUFFIXES and not hidden and path.is_file():
            yield path


def find_file(root: Path, name: str) -> Path | None:
    """Return the task file of a job, at once when its path has no unusual characters, else by listing."""
    for suffix in _SUFFIXES:
        direct = root.joinpath(*name.split("__")).with_suffix(suffix)
        if direct.is_file() and job_name(direct.relative_to(root)) == name:
            return direct
    return next((path for path in task_files(root) if job_name(path.relative_to(root)) == name), None)
