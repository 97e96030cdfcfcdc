"""One endpoint: the route that serves it, and what OpenAPI tells of it, from the same words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mloc_dagster.service.problems import Problem, forbidden
from mloc_dagster.service.tokens import Scope, Token
from mloc_dagster.spec.faults import nearest

Kind = Literal["text", "integer", "boolean", "day", "time"]
Value = str | int | bool | date | float


@dataclass(frozen=True)
class Parameter:
    """One parameter of the address; bounds are those of an integer, `choices` those of a text."""

    name: str
    what: str
    kind: Kind = "text"
    default: Value | None = None
    least: int = 0
    most: int = 0
    choices: tuple[str, ...] = ()

    def read(self, text: str) -> Value:
        """Return the value; raises Problem."""
        if not text:
            raise Problem(422, f"{self.name} is empty", f"leave it out, or say what: {self.what}")
        if "\0" in text:
            raise Problem(422, f"{self.name} holds a null character", "remove it")
        if self.choices and text not in self.choices:
            guess = nearest(text, self.choices)
            way_out = f"did you mean {guess}?" if guess else f"there are {', '.join(self.choices)}"
            raise Problem(422, f"{self.name} is {text[:40]!r}", way_out)
        return _READERS[self.kind](self, text)


def _integer(parameter: Parameter, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = math.nan
    if not parameter.least <= value <= parameter.most:
        way_out = f"write a whole number from {parameter.least} to {parameter.most}"
        raise Problem(422, f"{parameter.name} is {text[:40]!r}", way_out)
    return int(value)


def _boolean(parameter: Parameter, text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise Problem(422, f"{parameter.name} is {text[:40]!r}", "write true or false")
    return text.lower() in ("true", "1")


def _day(parameter: Parameter, text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise Problem(422, f"{parameter.name} is {text[:40]!r}", "write a day as 2026-11-21") from None


def _time(parameter: Parameter, text: str) -> float:
    """Seconds since the epoch of an ISO 8601 time (UTC where it names no zone), or of such seconds."""
    try:
        moment = datetime.fromisoformat(text if not text.isdecimal() or len(text) == 8 else "")  # 20261121 is a day
        value = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        value = _number(text)
    if not 0 <= value < _LATEST:
        way_out = "write a time as 2026-11-21T08:00:00Z, or seconds since 1970"
        raise Problem(422, f"{parameter.name} is {text[:40]!r}", way_out)
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


_LATEST = 253_402_300_000.0
"""The end of the year 9999."""
_READERS: Mapping[Kind, Callable[[Parameter, str], Value]] = {
    "text": lambda _, text: text, "integer": _integer, "boolean": _boolean, "day": _day, "time": _time,
}  # fmt: skip


@dataclass(frozen=True)
class Given:
    """The parameters of a request, checked."""

    values: Mapping[str, Value | None]

    def text(self, name: str) -> str | None:
        """Return a text that was given, if it was."""
        value = self.values[name]
        return None if value is None else str(value)

    def integer(self, name: str) -> int:
        """Return a whole number, given or not."""
        value = self.values[name]
        assert isinstance(value, int)
        return value

    def flag(self, name: str) -> bool:
        """Return whether something is wanted."""
        return bool(self.values[name])

    def day(self, name: str) -> date | None:
        """Return a day, if it was given."""
        value = self.values[name]
        assert value is None or isinstance(value, date)
        return value

    def time(self, name: str) -> float | None:
        """Return a time in seconds since the epoch, if it was given."""
        value = self.values[name]
        assert value is None or isinstance(value, float)
        return value

    def has(self, name: str) -> bool:
        """Whether a parameter without default was given."""
        return self.values[name] is not None


Handler = Callable[[Request, Given], Awaitable[Response]]


@dataclass(frozen=True)
class Endpoint:
    """A method of a path. `answer` is the shape of what comes back under `status` (none: `media` is no JSON), `takes`
    are the media types of the body."""

    method: str
    path: str
    handler: Handler
    summary: str
    answer: type | None = None
    status: int = 200
    scope: Scope = "read"
    query: tuple[Parameter, ...] = ()
    takes: tuple[str, ...] = ()
    media: str = "application/json"
    problems: tuple[int, ...] = ()
    """Statuses of problems beside those that all have."""
    also: Mapping[int, str] = field(default_factory=dict)
    """Further statuses that are no problem, and what they say."""

    def route(self) -> Route:
        """Return the route that serves it."""
        return Route(self.path, self._serve, methods=[self.method])

    async def _serve(self, request: Request) -> Response:
        token: Token = request.scope["mloc.token"]
        if not token.allows(self.scope):
            raise forbidden(token, self.scope)
        for name, value in request.path_params.items():
            if "\0" in str(value):
                raise Problem(404, f"there is no {name} with a null character", "check the address")
        return await self.handler(request, self._given(request))

    def _given(self, request: Request) -> Given:
        known = {parameter.name: parameter for parameter in self.query}
        given = dict(request.query_params)
        for name, count in Counter(name for name, _ in request.query_params.multi_items()).items():
            if count > 1:
                raise Problem(422, f"{name[:80]!r} is given {count} times", "give it once")
        for name in given:
            if name not in known:
                guess = nearest(name, tuple(known))
                names = f"there are {', '.join(known)}" if known else "this address takes none"
                way_out = f"did you mean {guess}?" if guess else names
                raise Problem(422, f"there is no query parameter {name[:80]!r}", way_out)
        return Given({n: p.read(given[n]) if n in given else p.default for n, p in known.items()})
