"""Pulled models and data sets, and vectors of indexes: those that were used last longest ago."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_dagster.files.atomic import held
from mloc_dagster.placement.retention.found import Found, newest_of, size_of
from mloc_dagster.store.home import Home

if TYPE_CHECKING:
    from dagster import DagsterInstance

_USED_SECONDS = 3600.0


def least_used(instance: DagsterInstance, home: Home, most: int) -> Iterator[Found]:
    """Yield entries until `most` bytes would be left; none that was used since the oldest run that goes on began."""
    since = _since(instance)
    entries = sorted((_used(path), path, size_of(path)) for path in _entries(home))
    left = sum(size for _, _, size in entries)
    for used, path, size in entries:
        if left <= most or used > since:
            return
        left -= size
        days = (time.time() - used) / 86_400
        yield Found("cache", path.name, size, f"not used for {days:.1f} days", partial(_remove, instance, path))


def _entries(home: Home) -> Iterator[Path]:
    """What is whole: `<name>-<hash>/` beside its `.json`, and the vectors of one embedding model."""
    for path in home.cache.glob("*"):
        if path.is_dir() and _beside(path, ".json").is_file():
            yield path
    yield from (home.cache / "vectors").glob("*.sqlite")


def _used(path: Path) -> float:
    """When an entry was used last; the record beside it is touched each time."""
    record = _beside(path, ".json")
    return record.stat().st_mtime if record.is_file() else newest_of(path)


def _remove(instance: DagsterInstance, path: Path) -> int:
    with held(_beside(path, ".lock")) as free:
        if not free or _used(path) > _since(instance):
            return 0
        size = size_of(path)
        _beside(path, ".json").unlink(missing_ok=True)  # without it, what is left of the entry counts for nothing
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return size


def _since(instance: DagsterInstance) -> float:
    """What was used after this, in seconds since the epoch, may be in use."""
    from dagster import RunsFilter
    from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

    going_on = instance.get_run_records(RunsFilter(statuses=list(NOT_FINISHED_STATUSES)))
    begun = [record.create_timestamp.timestamp() for record in going_on]
    return min([time.time() - _USED_SECONDS, *begun])


def _beside(place: Path, ending: str) -> Path:
    return place.with_name(place.name + ending)
