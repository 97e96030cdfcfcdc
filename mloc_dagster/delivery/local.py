"""Delivery to a folder inside the results: put aside whole, then in the place of an earlier one."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mloc_dagster.delivery.errors import DeliveryError
from mloc_dagster.files.atomic import sync_folder, sync_tree
from mloc_dagster.files.links import link_or_copy
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.output import Destination
from mloc_dagster.store.home import Home
from mloc_dagster.store.results import RESPONSES, read_envelope


def to_folder(folder: Path, target: Destination, home: Home) -> dict[str, Json]:
    """Copy a run folder (links where they can be made) to its place; an earlier delivery there is replaced."""
    try:
        place = home.resolve_inside(target.path or folder.parent.name)
    except ValueError as error:
        raise DeliveryError(f"output.destination.path: {error}") from None
    own = home.run_folder(folder.parent.name, folder.name)
    if place == own or place in own.parents:
        return {"delivered_to": str(own)}
    with _alone(home):
        aside, old = (place.with_name(f".{place.name}.{state}") for state in ("new", "old"))
        if old.exists() and not place.exists():  # a delivery was interrupted between its two renames
            old.rename(place)
        _check_place(place, home)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(folder, aside, copy_function=link_or_copy)
        sync_tree(aside)
        shutil.rmtree(old, ignore_errors=True)
        if place.exists():
            place.rename(old)
        aside.rename(place)
        sync_folder(place.parent)
        shutil.rmtree(old, ignore_errors=True)
    return {"delivered_to": str(place)}


@contextmanager
def _alone(home: Home) -> Iterator[None]:
    """Let one process at a time replace delivered folders."""
    home.work.mkdir(parents=True, exist_ok=True)
    with (home.work / "delivery.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_place(place: Path, home: Home) -> None:
    """Refuse a place where something other than an earlier delivery would be lost."""
    for above in place.parents:
        if above == home.results:
            break
        if above.is_file() or (above / RESPONSES).is_file():
            raise _taken(place, f"lies inside {above}, which is a {'file' if above.is_file() else 'result'}")
    if place.is_file():
        raise _taken(place, "is a file")
    if not place.is_dir() or not any(place.iterdir()):
        return
    if not (place / RESPONSES).is_file():
        raise _taken(place, "holds other files than one delivered result")
    if read_envelope(place / RESPONSES).task_id == place.relative_to(home.results).as_posix():
        raise _taken(place, "is where the result of another task lies")


def _taken(place: Path, why: str) -> DeliveryError:
    return DeliveryError(f"{place} {why}; write another output.destination.path, or move that away")
