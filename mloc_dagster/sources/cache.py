"""The cache of pulls: an entry is whole or not there, and is filled by one process at a time.

`<root>/<name>-<hash of key>/` is an entry. Beside it lie `.lock`, `.partial` (what an interrupted pull left, continued
by the next) and `.json`: size, number of files, revision, and, written last, the digest of the entry.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mloc_dagster.files.atomic import write_json
from mloc_dagster.sources.pulled import PullError, shown, tree_size
from mloc_dagster.store.digests import Digests
from mloc_dagster.store.home import Home

Fill = Callable[[Path], str | None]
"""Makes the content in a folder, continuing what an interrupted attempt left there; returns the revision it got."""


@dataclass(frozen=True)
class Stored:
    """A whole entry. `size` is in bytes."""

    path: Path
    digest: str
    size: int
    from_cache: bool
    revision: str | None


@dataclass(frozen=True)
class _Record:
    """What `.json` says of an entry; without a digest it is whole, but its pull was killed while it was digested."""

    size: int
    files: int
    revision: str | None
    digest: str | None = None

    def fits(self, folder: Path) -> bool:
        return (self.size, self.files) == (tree_size(folder), _count(folder))


class Cache:
    """Pulled models and data sets below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def look(self, key: str) -> Stored | None:
        """Return an entry that is whole, without waiting; None when there is none.

        Size and number of files are compared with what was stored; a damaged entry counts as none.
        """
        place = self._place(key)
        record = _read(_beside(place, ".json"))
        if record is None or record.digest is None or not record.fits(place):
            return None
        with suppress(OSError):  # a cache that others fill; what was used last longest ago is what `mloc gc` removes
            os.utime(_beside(place, ".json"))
        return Stored(place, record.digest, record.size, True, record.revision)

    def fetch(self, key: str, fill: Fill) -> Stored:
        """Return the entry of a key, made by `fill` when it isn't there; others who want it wait for the first.

        Raises PullError, also when the disk is full.
        """
        found = self.look(key)
        if found:
            return found
        place = self._place(key)
        try:
            with self._lock(place):
                return self.look(key) or self._make(place, fill)
        except OSError as error:
            raise PullError(f"{place} cannot be written: {error}; make room, or move MLOC_HOME") from None

    def _make(self, place: Path, fill: Fill) -> Stored:
        partial, beside = _beside(place, ".partial"), _beside(place, ".json")
        record = _read(beside)
        content = partial if partial.exists() else place
        if record is None or record.digest is not None or not record.fits(content):
            beside.unlink(missing_ok=True)
            partial.mkdir(parents=True, exist_ok=True)
            revision = fill(partial)
            record = _Record(tree_size(partial), _count(partial), revision)
            write_json(beside, asdict(record))
        if partial.exists():
            shutil.rmtree(place, ignore_errors=True)
            partial.rename(place)
        digest = Digests(Home(self.root.parent)).of(place)
        write_json(beside, asdict(replace(record, digest=digest)))
        return Stored(place, digest, record.size, False, record.revision)

    def _place(self, key: str) -> Path:
        name = re.sub(r"[^A-Za-z0-9.]+", "-", shown(key)).strip("-.")[:60]
        return self.root / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"

    @contextmanager
    def _lock(self, place: Path) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with _beside(place, ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _beside(place: Path, suffix: str) -> Path:
    return place.with_name(place.name + suffix)


def _count(place: Path) -> int:
    return sum(1 for file in place.rglob("*") if file.is_file())


def _read(record: Path) -> _Record | None:
    try:
        return _Record(**json.loads(record.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
