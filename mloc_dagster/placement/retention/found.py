"""Something that may go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

DAY = 86_400.0
"""Seconds."""


@dataclass(frozen=True)
class Found:
    """One thing: its kind, what it is called, its bytes, and why it may go. `remove` returns the bytes that went: none
    when someone needs it by now."""

    kind: str
    name: str
    size: int
    why: str
    remove: Callable[[], int] = field(repr=False, compare=False)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; what vanishes meanwhile counts nothing."""
    return sum(_size(file) for file in (path.rglob("*") if path.is_dir() else (path,)))


def newest_of(path: Path) -> float:
    """When a folder, or anything below it, was changed last, in seconds since the epoch."""
    return max((_changed(one) for one in (path, *path.rglob("*"))), default=0.0)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() and not path.is_symlink() else 0
    except OSError:
        return 0


def _changed(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0
