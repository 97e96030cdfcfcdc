"""The web server: Dagster's, with REST before its catch-all and a guard before everything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from anyio import to_thread
from dagster._core.workspace.context import WorkspaceProcessContext, WorkspaceRequestContext
from dagster._core.workspace.permissions import (
    LOCATION_SCOPED_PERMISSIONS,
    PermissionResult,
    Permissions,
    get_user_permissions,
)
from dagster_webserver.webserver import DagsterWebserver
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match, Mount, Route

from mloc_dagster.service import openapi, problems
from mloc_dagster.service.accounts import Accounts
from mloc_dagster.service.artifacts import Artifacts
from mloc_dagster.service.backend import Backend
from mloc_dagster.service.endpoint import Endpoint
from mloc_dagster.service.feeders import Feeders
from mloc_dagster.service.guard import Guard
from mloc_dagster.service.intake import Intake
from mloc_dagster.service.metrics import Metrics
from mloc_dagster.service.problems import Problem
from mloc_dagster.service.pulling import Pulling
from mloc_dagster.service.results import Results
from mloc_dagster.service.streams import Streams
from mloc_dagster.service.tasks import Tasks
from mloc_dagster.service.tokens import Token, Tokens
from mloc_dagster.service.workers import WorkersOf
from mloc_dagster.store.home import Home
from mloc_dagster.telemetry.traces import Traces
from mloc_dagster.usage.table import UsageTable

_OF_SUBMIT = frozenset(
    {
        Permissions.LAUNCH_PIPELINE_EXECUTION,
        Permissions.LAUNCH_PIPELINE_REEXECUTION,
        Permissions.TERMINATE_PIPELINE_EXECUTION,
        Permissions.LAUNCH_PARTITION_BACKFILL,
        Permissions.CANCEL_PARTITION_BACKFILL,
        Permissions.REPORT_RUNLESS_ASSET_EVENTS,
    }
)
"""What a token that may submit can do in the UI and over GraphQL, beside looking."""
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


_OLDER = ("/workers", "/workers/{id}")
"""Addresses that clients also know without `/api/v1`."""


def endpoints_of(backend: Backend) -> list[Endpoint]:
    """Return all endpoints below `/api/v1`, in the order in which they are tried."""
    parts = (Tasks, Streams, Results, WorkersOf, Accounts, Pulling, Artifacts)
    return [endpoint for part in parts for endpoint in part(backend).endpoints()]


class MlocWebserver(DagsterWebserver[WorkspaceProcessContext, WorkspaceRequestContext]):
    """UI, GraphQL and REST of one home."""

    def __init__(
        self, context: WorkspaceProcessContext, home: Home, intake: Intake, feeders: Feeders, usage: UsageTable,
        traces: Traces,
    ) -> None:  # fmt: skip
        self._tokens, self._feeders = Tokens(home), feeders
        self._backend = Backend(context.instance, home, intake, usage, feeders.knock, Path.cwd(), traces)
        super().__init__(context, live_data_poll_rate=2000)

    def create_asgi_app(self, **kwargs) -> Starlette:
        """Return the application."""
        return super().create_asgi_app(exception_handlers={Problem: problems.answer}, **kwargs)

    def build_middleware(self) -> list[Middleware]:
        """Return the guard, then Dagster's own."""
        return [Middleware(Guard, tokens=self._tokens), *super().build_middleware()]

    def build_routes(self) -> list[BaseRoute]:  # pyright: ignore[reportIncompatibleMethodOverride] - stock names none
        """Return ours, then Dagster's."""
        endpoints = endpoints_of(self._backend)
        told = json.dumps(openapi.document(endpoints), ensure_ascii=False).encode()

        async def tell(_request: Request) -> Response:
            return Response(told, media_type="application/json")

        rest = [*(endpoint.route() for endpoint in endpoints), Route("/openapi.json", tell)]
        older = [endpoint.route() for endpoint in endpoints if endpoint.path in _OLDER]
        ours = [
            Route("/healthz", _healthy),
            Route("/health", _healthy),
            Route("/readyz", self._ready),
            Route("/metrics", Metrics(self._backend).answer),
            *older,
            Mount(openapi.BASE, routes=[*rest, Route("/{path:path}", partial(_unknown, rest), methods=_METHODS)]),
        ]
        return [*ours, *super().build_routes()]

    def _make_request_context(self, conn: HTTPConnection) -> WorkspaceRequestContext:
        """Return a context that may do what the request's token allows; GraphQL asks it for each mutation."""
        return _Context(self._process_context, conn, conn.scope["mloc.token"])

    async def _ready(self, _request: Request) -> Response:
        """Whether the database answers, and the feeders run."""
        try:
            await to_thread.run_sync(lambda: self._process_context.instance.get_runs(limit=1))
        except Exception as error:
            raise Problem(503, f"the database does not answer: {type(error).__name__}", "see web.log") from None
        if not self._feeders.alive():
            raise Problem(503, "a feeder is not there just now", "it is started again within seconds")
        return JSONResponse({"status": "ready"})


class _Context(WorkspaceRequestContext):
    def __init__(self, process: WorkspaceProcessContext, source: HTTPConnection, token: Token) -> None:
        super().__init__(
            process.instance,
            process.get_current_workspace(),
            process,
            process.version,
            source,
            read_only=process.read_only or not token.allows("submit"),
        )
        self._token = token

    @property
    def permissions(self) -> Mapping[str, PermissionResult]:
        """What the token allows: nothing, what belongs to runs, or all."""
        stock = get_user_permissions(self._read_only)
        if self._read_only or self._token.allows("admin"):
            return stock
        no = PermissionResult(False, "the token's scope is submit; this needs admin")
        return {name: stock[name] if name in _OF_SUBMIT else no for name in stock}

    def permissions_for_location(self, *, location_name: str) -> Mapping[str, PermissionResult]:
        """The same, in every location."""
        return {name: result for name, result in self.permissions.items() if name in LOCATION_SCOPED_PERMISSIONS}


async def _healthy(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _unknown(routes: Sequence[Route], request: Request) -> Response:
    """Answer what no route takes: 405 where the path is known, else 404."""
    known = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    methods = {method for route in known for method in route.methods or ()}
    what = f"there is no {request.method} {request.url.path[:200]}"
    if methods:
        allowed = ", ".join(sorted(methods))
        raise Problem(405, what, f"there is {allowed}", headers={"Allow": allowed})
    raise Problem(404, what, "GET /api/v1/openapi.json tells of all addresses")
