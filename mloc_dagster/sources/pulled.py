"""What a pull gives."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

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
    """Bytes of a file, or of all files below a folder; a file that goes away meanwhile counts nothing."""
    if path.is_file():
        return path.stat().st_size
    total = 0
    for file in path.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:
            continue
    return total


def clear(folder: Path) -> None:
    """Remove everything in a folder."""
    for entry in folder.iterdir():
        remove(entry)


def remove(path: Path) -> None:
    """Remove a file, or a folder with everything in it."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def shown(address: str) -> str:
    """Return an address without what may be secret: user, password, query."""
    if "://" not in address:
        return address
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def local_path(name: str) -> Path:
    """Return the absolute path of a file:// address, or of a path as people write it."""
    path = unquote(name.removeprefix("file://").removeprefix("localhost")) if name.startswith("file://") else name
    return Path(path).expanduser().absolute()
