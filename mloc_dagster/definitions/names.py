"""Job names of task files: made from the path alone, so that a job is found without reading other files."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

_SUFFIXES = (".yaml", ".yml")
_OTHER = re.compile(r"[^A-Za-z0-9_]")


def job_name(relative: Path) -> str:
    """Return the job of a task file, from its path below the folder of task files.

    `quickstart/lora-sft.yaml` is `quickstart__lora_sft`. A part with letters beyond ASCII, which Dagster does not take
    in names, ends with six digits of its hash.
    """
    return "__".join(_safe(part) for part in relative.with_suffix("").parts)


def task_files(root: Path) -> Iterator[Path]:
    """Yield the task files below a folder, sorted; names that start with `.` or `_` are passed over."""
    for path in sorted(root.rglob("*")):
        hidden = any(_hidden(part) for part in path.relative_to(root).parts)
        if path.suffix in _SUFFIXES and not hidden and path.is_file():
            yield path


def find_file(root: Path, name: str) -> Path | None:
    """Return the first task file of a job; reads only the folders whose names begin the job's."""
    return min(_matches(root, name), default=None)


def _matches(folder: Path, name: str) -> Iterator[Path]:
    for entry in os.scandir(folder):
        if _hidden(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            prefix = f"{_safe(entry.name)}__"
            if name.startswith(prefix):
                yield from _matches(Path(entry.path), name.removeprefix(prefix))
        elif entry.name.endswith(_SUFFIXES) and _safe(Path(entry.name).stem) == name and entry.is_file():
            yield Path(entry.path)


def _hidden(part: str) -> bool:
    return part.startswith((".", "_"))


def _safe(part: str) -> str:
    safe = _OTHER.sub("_", part)
    return safe if part.isascii() else f"{safe}_{hashlib.sha256(part.encode()).hexdigest()[:6]}"
