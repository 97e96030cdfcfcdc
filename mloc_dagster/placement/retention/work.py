"""Work folders of stages that never finished, and what uploads that broke off have left."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from mloc_dagster.files.atomic import held
from mloc_dagster.placement.retention.found import DAY, Found, newest_of, size_of
from mloc_dagster.store.home import Home


def old_work(home: Home, days: float) -> Iterator[Found]:
    """Yield work folders that nobody works in and that nothing has changed for so many days."""
    for folder in sorted(home.work.glob("*")) if home.work.is_dir() else ():
        if folder.is_dir() and not folder.name.startswith(".") and _is_old(folder, days):
            with held(lock_of(home, folder.name)) as free:
                if free:
                    why = f"not finished, and untouched for {days:g} days"
                    yield Found("work", folder.name[:12], size_of(folder), why, partial(_remove, home, folder, days))


def old_locks(home: Home, days: float) -> Iterator[Found]:
    """Yield the locks of work that is over, all together, unless there are none that are so old."""
    old = [path for path in sorted(home.work.glob("*.lock")) if _is_left(path, days)]
    if old:
        yield Found("locks", str(len(old)), 0, f"of work that was over {days:g} days ago", partial(_unlock, old, days))


def broken_uploads(home: Home) -> Iterator[Found]:
    """Yield parts of blobs that no machine has gone on to send for a day."""
    for path in sorted((home.root / "pull" / "halves").glob("*")):
        if time.time() - newest_of(path) > DAY:
            yield Found("uploads", path.name[:12], size_of(path), "broke off over a day ago", partial(_unlink, path))


def lock_of(home: Home, digest: str) -> Path:
    """The lock that a run holds as long as it works on a stage, wherever that is done."""
    return home.work / f"{digest}.lock"


def _is_old(folder: Path, days: float) -> bool:
    return time.time() - newest_of(folder) > days * DAY


def _is_left(lock: Path, days: float) -> bool:
    return _is_old(lock, days) and not lock.with_suffix("").exists()


def _unlock(locks: Sequence[Path], days: float) -> int:
    for path in locks:
        with held(path) as free:
            if free and _is_left(path, days):
                path.unlink(missing_ok=True)
    return 0


def _remove(home: Home, folder: Path, days: float) -> int:
    with held(lock_of(home, folder.name)) as free:
        if not free or not folder.is_dir() or not _is_old(folder, days):
            return 0
        size = size_of(folder)
        shutil.rmtree(folder, ignore_errors=True)
        return size


def _unlink(path: Path) -> int:
    size = size_of(path)
    path.unlink(missing_ok=True)
    return size
