"""What a pull gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Progress = Callable[[int, int | None], None]
"""Called with bytes done and bytes in all (None: not known)."""


class PullError(Exception):
    """A source that cannot be had; the message says which, why, and what to do."""


@dataclass(frozen=True)
class Pulled:
    """A model or data set on this machine. `digest` is `sha256:<hex>` of its files, `size` is in bytes."""

    path: Path
    digest: str
    revision: str | None
    size: int
    from_cache: bool
    origin: str


def tree_size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
