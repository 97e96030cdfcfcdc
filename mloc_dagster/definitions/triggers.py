"""What triggers look at: a folder, objects of a bucket, results of other tasks; and what is new there since last time.

What a folder or a prefix holds at the first look is new, too: nothing that came before it is missed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dagster import AssetKey, AssetRecordsFilter, DagsterInstance

from mloc_dagster.spec.schedule import Triggers

MOST = 10_000
"""So many files or objects are looked at; their marks are kept from one look to the next."""
_QUIET_SECONDS = 1.0
_PAGE = 100


class CannotLook(Exception):
    """A look that did not come through, as the tick tells it; the next one comes all the same."""


@dataclass(frozen=True)
class Look:
    """What was there at a look: marks of files and objects by the place, and the last result seen of each asset."""

    places: dict[str, list[str]] = field(default_factory=dict)
    assets: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str | None) -> Look:
        """Return the look that a cursor holds; the first one has none."""
        return cls(**json.loads(text)) if text else cls()

    def written(self) -> str:
        """Return it as a cursor."""
        return json.dumps(asdict(self), separators=(",", ":"))


@dataclass(frozen=True)
class Found:
    """What has come, in words; a key that stands for just that; and the look to go on from."""

    came: tuple[str, ...]
    key: str
    after: Look


def look(instance: DagsterInstance, triggers: Triggers, task: str, since: float, before: Look) -> Found:
    """Look at everything; raises CannotLook when a place cannot be read, so that nothing is taken for gone."""
    came: list[str] = []
    marks: list[str] = []
    places: dict[str, list[str]] = {}
    for place, found in _places(triggers):
        known = set(before.places.get(place, ()))
        new = {mark: name for mark, name in found.items() if mark not in known}
        came += sorted(new.values())
        marks += sorted(new)
        places[place] = sorted(found)
    assets = {}
    for name in triggers.asset_updated:
        last, new_result = _updated(instance, name, task, since, before.assets.get(name, 0))
        assets[name] = last
        if new_result:
            came.append(name)
            marks.append(f"{name}@{last}")
    key = hashlib.sha256("\0".join(marks).encode()).hexdigest()[:32]
    return Found(tuple(came), key, Look(places, assets))


def _places(triggers: Triggers) -> Iterator[tuple[str, dict[str, str]]]:
    if triggers.inbox:
        yield triggers.inbox, _files(Path(triggers.inbox))
    if triggers.s3_prefix:
        yield triggers.s3_prefix, _objects(triggers.s3_prefix)


def _files(folder: Path) -> dict[str, str]:
    """Names of files by their marks; a folder that is not there (yet) is empty."""
    found: dict[str, str] = {}
    try:
        paths = sorted(folder.iterdir()) if folder.exists() else []
        for path in paths:
            if not path.name.startswith(".") and path.is_file():
                stat = path.stat()
                if abs(time.time() - stat.st_mtime) >= _QUIET_SECONDS:
                    found[_mark(path.name, stat.st_mtime_ns, stat.st_size)] = path.name
    except FileNotFoundError:  # taken away at this moment
        raise CannotLook(f"{folder} changes just now") from None
    except OSError as error:
        raise CannotLook(f"{folder} cannot be read: {error.strerror}; check its permissions") from None
    return _bounded(found, str(folder))


def _objects(prefix: str) -> dict[str, str]:
    import fsspec

    try:
        files = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
        listed = files.find(prefix, detail=True)
    except ImportError:
        raise CannotLook("s3_prefix needs the extra s3: pip install 'mloc-dagster[s3]'") from None
    except FileNotFoundError:
        raise CannotLook(f"{prefix}: there is no such bucket; check triggers.s3_prefix") from None
    except Exception as error:
        raise CannotLook(f"{prefix} cannot be listed: {type(error).__name__}: {str(error)[:200]}") from None
    found = {_mark(key, entry.get("ETag"), entry.get("size")): f"s3://{key}" for key, entry in listed.items()}
    return _bounded(found, prefix)


def _bounded(found: dict[str, str], place: str) -> dict[str, str]:
    if len(found) > MOST:
        raise CannotLook(
            f"{place} holds {len(found)} entries, more than the {MOST} that a trigger takes; move some away"
        )
    return found


def _mark(*parts: object) -> str:
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:12]


def _updated(instance: DagsterInstance, name: str, task: str, since: float, last: int) -> tuple[int, bool]:
    """The last result of an asset, and whether one that is newer than `last` was made, not reused, by another task."""
    wanted = AssetRecordsFilter(
        asset_key=AssetKey(name.split("/")), after_storage_id=last or None, after_timestamp=since if not last else None
    )
    new, cursor = False, None
    while True:
        page = instance.fetch_materializations(wanted, limit=_PAGE, cursor=cursor, ascending=True)
        for record in page.records:
            last = max(last, record.storage_id)
            made = record.asset_materialization
            if made is not None and "reused_from" not in made.metadata:
                run = instance.get_run_by_id(record.run_id)
                new = new or run is None or run.tags.get("mloc/task") != task
        if not page.has_more:
            return last, new
        cursor = page.cursor
