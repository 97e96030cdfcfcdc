"""`/api/v1/stats`, `/api/v1/usage` and `/api/v1/dead_letters`: what was used, and what failed for good."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import get_args

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mloc_dagster.client import shapes
from mloc_dagster.placement.failures.cause import Cause
from mloc_dagster.placement.failures.letters import dead_letters
from mloc_dagster.service.backend import Backend
from mloc_dagster.service.endpoint import Endpoint, Given, Parameter
from mloc_dagster.service.problems import Problem
from mloc_dagster.spec import SpecError
from mloc_dagster.spec.base import Json
from mloc_dagster.usage.settings import UsageSettings, settings_of
from mloc_dagster.usage.stats import Asked, breakdown, stats
from mloc_dagster.usage.table import By

_CHOSEN = (
    Parameter("user", "Only this owner's."),
    Parameter("project", "Only this project's."),
    Parameter("start_date", "From this day of UTC on.", "day"),
    Parameter("end_date", "Up to this day of UTC, which is included.", "day"),
)
_BY = (Parameter("by", "What the rows are of.", default="owner", choices=get_args(By)),)
_LETTERS = (
    Parameter("cause", "Only those with this cause.", choices=tuple(Cause)),
    Parameter("limit", "How many, newest first.", "integer", 50, 1, 500),
)


class Accounts:
    """The endpoints of usage and of failures."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def endpoints(self) -> list[Endpoint]:
        """Return them."""
        return [
            Endpoint("GET", "/stats", self.stats, "Usage of runs that are over.", shapes.Stats, query=_CHOSEN,
                     problems=(422, 503)),
            Endpoint("GET", "/usage", self.usage, "Usage, broken down.", shapes.UsageRows, query=(*_CHOSEN, *_BY),
                     problems=(422, 503)),
            Endpoint("GET", "/dead_letters", self.letters, "Runs that failed for good and were not done again.",
                     shapes.DeadLetters, query=_LETTERS, problems=(422,)),
        ]  # fmt: skip

    async def stats(self, _request: Request, given: Given) -> Response:
        """Tell of totals and breakdowns."""
        asked = _asked(given)
        return JSONResponse(await self._priced(lambda settings: stats(self._backend.usage, asked, settings)))

    async def usage(self, _request: Request, given: Given) -> Response:
        """Tell of rows."""
        asked, by = _asked(given), given.text("by")
        rows = await self._priced(
            lambda settings: breakdown(self._backend.usage, asked, settings, by)  # pyright: ignore[reportArgumentType]
        )
        return JSONResponse({"query_parameters": asked.as_dict(), "by": by, "rows": rows})

    async def letters(self, _request: Request, given: Given) -> Response:
        """Tell of dead letters."""
        cause = given.text("cause")
        work = partial(dead_letters, self._backend.instance, given.integer("limit"), Cause(cause) if cause else None)
        return JSONResponse({"dead_letters": [asdict(letter) for letter in await self._backend.thread(work)]})

    async def _priced(self, work: Callable[[UsageSettings], Json]) -> Json:
        try:
            return await self._backend.thread(lambda: work(settings_of(self._backend.home)))
        except SpecError as error:
            raise Problem(503, "the prices of this service cannot be read", f"mend them: {error.faults[0]}") from None


def _asked(given: Given) -> Asked:
    asked = Asked(given.text("user"), given.text("project"), given.day("start_date"), given.day("end_date"))
    if asked.start and asked.end and asked.end < asked.start:
        raise Problem(
            422, f"end_date {asked.end} is before start_date {asked.start}", "write the later day as end_date"
        )
    return asked
