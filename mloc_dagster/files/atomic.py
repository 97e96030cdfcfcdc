"""Files and folders that are either whole or not there: write aside, fsync, rename.

What has no other name yet is called `.<name>.<random>.half` and is locked by its writer, so that `sweep` can tell what
a killed one has left.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

HALF = ".half"
"""End of the name of a file or folder that is being made; its name begins with a dot."""
_LOCKING_SECONDS = 5.0
"""A half file that is younger may not have been locked by its writer yet."""


def write_text(path: Path, text: str) -> None:
    """Replace a file by `text`; a reader sees the old or the new one, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = half_file(path)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_private(path: Path, text: str) -> None:
    """Replace a file by text that only its owner may read, at no time anyone else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def half_file(path: Path) -> tuple[int, str]:
    """Make the locked file that is to become `path`; returns its descriptor and name. Who closes it lets it go."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=HALF)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle, name


@contextmanager
def half_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield a new folder that is removed at the end of the block; after a kill, `sweep` does that."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=f".{name}.", suffix=HALF) as folder, locked(Path(folder)):
        yield Path(folder)


def sweep(root: Path, *, least_age: float = _LOCKING_SECONDS) -> list[Path]:
    """Remove the half files and folders below `root` whose writers were killed, and return them.

    Those that are younger than `least_age` seconds stay: only who knows that nobody writes there may give 0.
    """
    found = [
        Path(folder) / name
        for folder, folders, files in os.walk(root)  # bears what vanishes meanwhile, and follows no link
        for name in (*folders, *files)
        if name.startswith(".") and name.endswith(HALF)
    ]
    return [path for path in found if _abandoned(path, least_age) and _removed(path)]


def write_json(path: Path, value: Any) -> None:
    """Replace a file by JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill; it takes the place of `path` only when the block ends well.

    The old folder is moved aside, never emptied in its place: after a kill there is a whole one under `path`, or (in
    the instant between two renames) none, until `restore` puts the old one back.
    """
    restore(path)
    partial, old = aside(path), _replaced(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    sync_tree(partial)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    partial.replace(path)
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def aside(path: Path) -> Path:
    """Where `new_folder` fills the folder before it takes its place."""
    return path.with_name(f".{path.name}.partial")


def restore(path: Path) -> None:
    """Put back the folder that `new_folder` had moved aside when it was killed between its two renames."""
    if not path.exists() and _replaced(path).is_dir():
        _replaced(path).rename(path)


def _replaced(path: Path) -> Path:
    return path.with_name(f".{path.name}.replaced")


def sync_tree(folder: Path) -> None:
    """Make every file below the folder durable."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file or folder; whoever else asks for it waits."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def held(lock: Path) -> Iterator[bool]:
    """Hold a lock file as long as the block runs; gives False when someone else does, or it was removed just now."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield is_at(file, lock)


def is_at(file: IO[Any], path: Path) -> bool:
    """Whether an open file is the one that a path names; one whose lock was awaited may have been removed meanwhile."""
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _abandoned(path: Path, least_age: float) -> bool:
    try:
        if path.is_symlink() or time.time() - path.stat().st_ctime < least_age:
            return False
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def _removed(path: Path) -> bool:
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return not path.exists()
