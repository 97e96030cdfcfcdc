"""The periods that usage is summed up by: days, months, all time; as few of them as make up a span of days."""

from __future__ import annotations

from datetime import date, timedelta

_EPOCH = date(1970, 1, 1)
_LATEST = date(9999, 12, 1)
ALL = -1_000_000
"""The number of all time. Days are numbered from 1970-01-01 on, months are below zero."""


def day_number(day: date) -> int:
    """Return the number of a day since 1970-01-01."""
    return (day - _EPOCH).days


def date_of(day: int) -> date:
    """Return the day of a number."""
    return _EPOCH + timedelta(days=day)


def periods_of(day: int) -> tuple[int, int, int]:
    """Return the numbers of the periods that a day belongs to."""
    return day, _month(date_of(day)), ALL


def covering(first: int | None, last: int | None, known: tuple[int, int]) -> list[tuple[int, int]]:
    """Return spans of period numbers, ends included, that make up the days from `first` to `last`.

    `known` are the first and the last day that there is anything of; None means all before or after.
    """
    if (first is None or first <= known[0]) and (last is None or last >= known[1]):
        return [(ALL, ALL)]
    begin, end = (
        max(known[0], first if first is not None else known[0]),
        min(known[1], known[1] if last is None else last),
    )
    if end < begin:
        return []
    since, until = date_of(begin), date_of(end) + timedelta(days=1)
    whole = since if since.day == 1 else _next(since)
    stop = until.replace(day=1)
    if whole >= stop:
        return [(begin, end)]
    spans = [(-_count(_before(stop)), -_count(whole))]
    spans += [(begin, day_number(whole) - 1)] if since < whole else []
    return [*spans, (day_number(stop), end)] if stop < until else spans


def _month(day: date) -> int:
    return -_count(day)


def _count(day: date) -> int:
    """Months since the year 0, counted so that later ones have larger numbers."""
    return day.year * 12 + day.month


def _next(day: date) -> date:
    return (day.replace(day=1) + timedelta(days=32)).replace(day=1) if day < _LATEST else date.max


def _before(day: date) -> date:
    return day - timedelta(days=1)
