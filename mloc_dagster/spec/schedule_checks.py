"""Checks of `spec.schedule` and `spec.triggers`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from zoneinfo import ZoneInfo

from mloc_dagster.spec import references as refs
from mloc_dagster.spec.faults import Fault, shown
from mloc_dagster.spec.schedule import Schedule, Triggers
from mloc_dagster.spec.tree import Mapping
from mloc_dagster.spec.typed import origin_at

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_FIELDS = (
    ("minute", 0, 59, []), ("hour", 0, 23, []), ("day of the month", 1, 31, []), ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 7, _DAYS),
)  # fmt: skip
_PART = re.compile(r"(?:\*|(\w+)(?:-(\w+))?)(?:/(\d+))?")
SECTIONS = ("schedule", "triggers")
_ASSET = re.compile(r"[^/\s]+(/[^/\s]+)+")


def faults(
    schedule: Schedule | None, triggers: Triggers | None, trees: dict[str, Mapping], task: str
) -> Iterator[Fault]:
    """Faults of times that never come, of zones that are not known, and of triggers that the task sets off itself."""
    for tree in trees.values():
        for path, _ in refs.find(tree):
            place = origin_at(tree, path)
            if place:
                yield Fault(*place.value, place.text, "cannot hold a reference", "", "write the value itself")
    if schedule is not None:
        yield from _of_schedule(schedule, trees["schedule"])
    if triggers is not None:
        yield from _of_triggers(triggers, trees["triggers"], task)


def warnings(trees: dict[str, Mapping]) -> Iterator[Fault]:
    """A file alone does nothing by itself: it is added to a deployment."""
    for name, tree in trees.items():
        for key in list(tree)[:1]:
            place = origin_at(tree, (key,))
            if place:
                what, way_out = "takes effect once the file is added", "mloc schedule add FILE"
                yield Fault(*place.key, f"spec.{name}", what, "", way_out)


def cron_fault(cron: str) -> tuple[str, str] | None:
    """Return what is wrong with times in cron's way, and the way out; None when nothing is."""
    parts = cron.split()
    if len(parts) != len(_FIELDS):
        return f"has {len(parts)} parts instead of 5", "write minute, hour, day of the month, month, day of the week"
    for text, (name, low, high, names) in zip(parts, _FIELDS, strict=True):
        if not all(_is_part(part, low, high, names) for part in text.lower().split(",")):
            return (
                f"has {text!r} as {name}",
                f"write *, numbers from {low} to {high}, ranges a-b, lists a,b or steps */n",
            )
    return None


def _is_part(text: str, low: int, high: int, names: list[str]) -> bool:
    match = _PART.fullmatch(text)
    if match is None or (match[3] is not None and not 0 < int(match[3]) <= high):
        return False
    numbers = [_number(word, low, names) for word in match.groups()[:2] if word is not None]
    return all(low <= number <= high for number in numbers) and numbers == sorted(numbers)


def _number(word: str, low: int, names: list[str]) -> int:
    return names.index(word) + low if word in names else int(word) if word.isdecimal() else -1


def _of_schedule(schedule: Schedule, tree: Mapping) -> Iterator[Fault]:
    place = origin_at(tree, ("cron",))
    if place and (wrong := cron_fault(schedule.cron)):
        yield Fault(*place.value, place.text, wrong[0], shown(schedule.cron), wrong[1])
    place = origin_at(tree, ("timezone",))
    if place and not _is_zone(schedule.timezone):
        way_out = "write a name of the tz database, such as UTC or Europe/Berlin"
        yield Fault(*place.value, place.text, "is not a time zone", shown(schedule.timezone), way_out)


def _is_zone(name: str) -> bool:
    try:
        return bool(ZoneInfo(name))
    except (KeyError, OSError, ValueError):  # no such zone, a folder of zones, a path
        return False


def _of_triggers(triggers: Triggers, tree: Mapping, task: str) -> Iterator[Fault]:
    for index, name in enumerate(triggers.asset_updated):
        place = origin_at(tree, ("asset_updated", index))
        if place and not _ASSET.fullmatch(name):
            way_out = "write task/stage, model/org/name or dataset/…, as the UI shows it"
            yield Fault(*place.value, place.text, "is not the key of an asset", shown(name), way_out)
        elif place and name.split("/")[0] == task:
            what, way_out = "is an asset of this very task, which would start itself", "name another task's"
            yield Fault(*place.value, place.text, what, shown(name), way_out)


__all__ = ["SECTIONS", "cron_fault", "faults", "warnings"]
