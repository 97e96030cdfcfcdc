"""Links: copies that take no room where the file system can link, and files that no link leads away from."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import BinaryIO


def link_or_copy(source: str, target: str) -> None:
    """Make `target` a hard link to the file `source`, or a copy on another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def inside(path: Path, root: Path) -> Path | None:
    """Return where a path really lies when that is below `root`; None when a link leads elsewhere or nowhere."""
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        return None
    return real if root.resolve() in real.parents else None


def open_inside(path: Path, root: Path) -> BinaryIO:
    """Open a file to read that lies below `root`, links followed; raises FileNotFoundError for what is none."""
    real = inside(path, root)
    if real is None or not real.is_file():
        raise FileNotFoundError(f"{path} is no file below {root}")
    return os.fdopen(os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
