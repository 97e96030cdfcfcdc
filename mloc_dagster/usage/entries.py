"""One run as entries: who held how much of what, by step, attempt and day. No database, no clock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from mloc_dagster.usage.held import NOTHING, Held

DAY_MS = 86_400_000
CPU = ""
"""The device of entries that count cores, tokens and the run itself."""
Kind = Literal["start", "end", "tokens", "seat"]


@dataclass(frozen=True)
class Moment:
    """Something that happened to a step: an attempt began or ended, its result told of tokens, or what it holds of a
    worker of its own has changed."""

    step: str
    kind: Kind
    at: float
    """Seconds since the epoch."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    held: Held = NOTHING


@dataclass(frozen=True)
class Ended:
    """A run that is over; times in seconds since the epoch, None where it never came to that."""

    run_id: str
    task: str
    owner: str
    project: str
    status: str
    created: float
    started: float | None
    ended: float | None
    held: Held
    moments: tuple[Moment, ...] = ()
    updated: float = 0.0
    slo_seconds: float | None = None
    held_until: float | None = None
    """When it gave that back, since each of its stages has a worker of its own; None: at its end."""


@dataclass(frozen=True, order=True)
class Entry:
    """What one attempt at a step held on one day; `device_us` and `cpu_us` are µs of a whole device and of a core.

    `step` is empty for what no step had. `day` counts days of UTC since 1970-01-01.
    """

    step: str
    attempt: int
    day: int
    gpu: str
    device_us: int = 0
    cpu_us: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class _Sums:
    values: list[int] = field(default_factory=lambda: [0, 0, 0, 0])


def day_of(seconds: float) -> int:
    """Return the day of a time."""
    return _ms(seconds) // DAY_MS


def queue_ms(run: Ended) -> int:
    """Return how long a run waited to begin, or to be cancelled, in milliseconds."""
    until = run.started if run.started is not None else run.ended
    return max(0, _ms(until) - _ms(run.created)) if until is not None else 0


def run_ms(run: Ended) -> int:
    """Return how long a run went on, in milliseconds."""
    return max(0, _ms(run.ended) - _ms(run.started)) if run.started is not None and run.ended is not None else 0


def retries(run: Ended) -> int:
    """Return how many attempts at steps began beyond the first of each."""
    begun = [moment.step for moment in run.moments if moment.kind == "start"]
    return len(begun) - len(set(begun))


def entries_of(run: Ended) -> list[Entry]:
    """Return the entries of a run, sorted. Their sums are exactly what the run held from its start to its end."""
    if run.started is None or run.ended is None or run.ended <= run.started:
        return []
    begin, end = _ms(run.started), _ms(run.ended)
    sums: dict[tuple[str, int, int, str], _Sums] = defaultdict(_Sums)
    last = end if run.held_until is None else max(begin, min(_ms(run.held_until), end))
    for since, until, active in _spans(_attempts(run, begin, last), begin, last):
        for day, length in _days(since, until):
            for number, (step, attempt) in enumerate(active):
                for gpu, share in run.held.devices:
                    sums[step, attempt, day, gpu].values[0] += _part(length * share, len(active), number)
                sums[step, attempt, day, CPU].values[1] += _part(length * run.held.cpu, len(active), number)
    for since, until, step, attempt, held in _seats(run, begin, end):
        for day, length in _days(since, until):
            for gpu, share in held.devices:
                sums[step, attempt, day, gpu].values[0] += length * share
            sums[step, attempt, day, CPU].values[1] += length * held.cpu
    for step, attempt, moment in _tokens(run.moments):
        values = sums[step, attempt, min(max(_ms(moment.at), begin), end) // DAY_MS, CPU].values
        values[2] += moment.prompt_tokens
        values[3] += moment.completion_tokens
    return sorted(Entry(*key, *found.values) for key, found in sums.items())


def _attempts(run: Ended, begin: int, end: int) -> list[tuple[int, int, str, int]]:
    """When attempts began and ended, within the run; one that is not known to have ended went on to its end."""
    found: list[tuple[int, int, str, int]] = []
    going: dict[str, tuple[int, int]] = {}
    count: dict[str, int] = defaultdict(int)

    def close(step: str, at: int) -> None:
        since, attempt = going.pop(step)
        if min(at, end) > max(since, begin):
            found.append((max(since, begin), min(at, end), step, attempt))

    for moment in run.moments:
        at = _ms(moment.at)
        if moment.kind in ("start", "end") and moment.step in going:
            close(moment.step, at)
        if moment.kind == "start":
            count[moment.step] += 1
            going[moment.step] = at, count[moment.step]
    for step in list(going):
        close(step, end)
    return found


def _seats(run: Ended, begin: int, end: int) -> Iterator[tuple[int, int, str, int, Held]]:
    """What steps held of workers of their own, and when, within the run; an attempt that ends holds nothing more."""
    count: dict[str, int] = defaultdict(int)
    holding: dict[str, tuple[int, Held]] = {}
    last_of_all = [Moment(step, "end", run.ended or 0.0) for step in dict.fromkeys(one.step for one in run.moments)]
    for moment in (*run.moments, *last_of_all):
        if moment.kind == "tokens":
            continue
        since, held = holding.pop(moment.step, (0, NOTHING))
        first, last = max(since, begin), min(_ms(moment.at), end)
        if held != NOTHING and last > first:
            yield first, last, moment.step, max(1, count[moment.step]), held
        if moment.kind == "seat":
            holding[moment.step] = _ms(moment.at), moment.held
        count[moment.step] += moment.kind == "start"


def _spans(
    attempts: Sequence[tuple[int, int, str, int]], begin: int, end: int
) -> Iterator[tuple[int, int, list[tuple[str, int]]]]:
    """Cut the time of a run where an attempt begins or ends; each part with those that went on, or the task itself."""
    cuts = sorted({begin, end, *(one[0] for one in attempts), *(one[1] for one in attempts)})
    for since, until in pairwise(cuts):
        active = sorted((step, number) for first, last, step, number in attempts if first <= since and last >= until)
        yield since, until, active or [("", 0)]


def _days(since: int, until: int) -> Iterator[tuple[int, int]]:
    while since < until:
        day = since // DAY_MS
        stop = min(until, (day + 1) * DAY_MS)
        yield day, stop - since
        since = stop


def _tokens(moments: Iterable[Moment]) -> Iterator[tuple[str, int, Moment]]:
    count: dict[str, int] = defaultdict(int)
    for moment in moments:
        if moment.kind == "start":
            count[moment.step] += 1
        elif moment.kind == "tokens":
            yield moment.step, max(1, count[moment.step]), moment


def _part(amount: int, count: int, number: int) -> int:
    """The share of one of `count`; the first ones get what is left over, so that nothing is lost."""
    whole, rest = divmod(amount, count)
    return whole + (number < rest)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
