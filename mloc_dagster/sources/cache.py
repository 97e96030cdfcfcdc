"""The cache of pulls: an entry is whole or not there, and is filled by one process at a time.

`<root>/<kind>-<hash of key>/` is an entry, beside it `.lock`, `.partial` (what an interrupted pull left, continued by
the next) and `.json`, written last, with the size, number of files and digest of the entry.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mloc_dagster.sources.pulled import tree_size
from mloc_dagster.store.atomic import write_json
from mloc_dagster.store.digests import Digests
from mloc_dagster.store.home import Home


@dataclass(frozen=True)
class Stored:
    """A whole entry."""

    path: Path
    digest: str
    size: int
    from_cache: bool
    revision: str | None


class Cache:
    """Pulled models and data sets below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def look(self, key: str) -> Stored | None:
        """Return an entry that is whole, without waiting; None when there is none."""
        place = self._place(key)
        try:
            record = json.loads(_beside(place, ".json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        files = sum(1 for file in place.rglob("*") if file.is_file())
        if record.get("key") != key or tree_size(place) != record["size"] or files != record["files"]:
            return None
        return Stored(place, record["digest"], record["size"], True, record.get("revision"))

    def fetch(self, key: str, fill: Callable[[Path], str | None]) -> Stored:
        """Return the entry of a key; `fill(folder)` makes it when it isn't there, and returns the revision it got.

        `fill` may find in the folder what an interrupted attempt left, and continues it. Others who want the same key
        wait for the first.
        """
        found = self.look(key)
        if found:
            return found
        place = self._place(key)
        with self._lock(place):
            found = self.look(key)
            if found:
                return found
            partial = _beside(place, ".partial")
            partial.mkdir(parents=True, exist_ok=True)
            revision = fill(partial)
            shutil.rmtree(place, ignore_errors=True)
            partial.rename(place)
            digest = Digests(Home(self.root.parent)).of(place)
            files = sum(1 for file in place.rglob("*") if file.is_file())
            size = tree_size(place)
            write_json(_beside(place, ".json"), {"key": key, "size": size, "files": files, "digest": digest, "revision": revision})
            return Stored(place, digest, size, False, revision)

    def _place(self, key: str) -> Path:
        name = re.sub(r"[^A-Za-z0-9]+", "-", key).strip("-")[:60]
        return self.root / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"

    @contextmanager
    def _lock(self, place: Path) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with _beside(place, ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _beside(place: Path, suffix: str) -> Path:
    return place.with_name(place.name + suffix)
