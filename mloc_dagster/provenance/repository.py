"""The git commit that a task file stands in."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from mloc_dagster.spec.load import base_of, without_base
from mloc_dagster.spec.taskfile import TaskFile

_SECONDS = 20.0


@dataclass(frozen=True)
class Commit:
    """The commit that was checked out; `path` is the file's in it, None when the commit has no such file."""

    id: str
    path: str | None


def commit_of(task: TaskFile) -> Commit | None:
    """Return the commit of the repository around a task file, or None when there is none (or no git).

    A submitted copy knows only the folder that it came from: it counts as that repository's when the commit there
    holds a file with exactly its text.
    """
    folder = base_of(task.text) or (task.path.resolve().parent if task.path else None)
    if folder is None or not folder.is_dir():
        return None
    head = _git(folder, "rev-parse", "--verify", "HEAD")
    listed = _git(folder, "ls-tree", "-r", "--full-tree", "HEAD") if head else None
    if head is None or listed is None:
        return None
    path = _path_of(folder, without_base(task.text), listed)
    if path is None and base_of(task.text) is not None:
        return None
    return Commit(head.strip(), path)


def _path_of(folder: Path, text: str, listed: str) -> str | None:
    """The file of the commit that has this text; of several the one that is first by name."""
    texts = {text, f"{text.rstrip()}\n"}  # a submitted copy does not tell how its original ended
    blobs = {(_git(folder, "hash-object", "--stdin", given=one) or "-").strip() for one in texts}
    found = (line.partition("\t") for line in listed.splitlines())
    return next((name for head, _, name in found if head.split()[2] in blobs), None)


def _git(folder: Path, *arguments: str, given: str | None = None) -> str | None:
    """What git prints, or None when it cannot."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    command = ["git", "-C", str(folder), "-c", "core.quotePath=false", "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, env=environment, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeError):
        return None
    return done.stdout if done.returncode == 0 else None
