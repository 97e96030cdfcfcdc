"""`/api/v1/pull`: machines that reach out enter themselves, ask for work, and bring logs and ends."""

from __future__ import annotations

import asyncio
import os
import re
import time
from functools import partial
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from mloc_dagster import __version__
from mloc_dagster.client import shapes
from mloc_dagster.placement.failures.cause import Cause
from mloc_dagster.placement.inventory import Device
from mloc_dagster.placement.pull.desk import Desk, End, Gap, GivenUp, PullOrder
from mloc_dagster.placement.queue.signals import knock
from mloc_dagster.placement.workers.declared import Fleet, fleet_of
from mloc_dagster.placement.workers.outbound import Pull, Registered, Registry
from mloc_dagster.service.backend import Backend
from mloc_dagster.service.bodies import read_json
from mloc_dagster.service.endpoint import Endpoint, Given, Parameter
from mloc_dagster.service.problems import Problem
from mloc_dagster.service.tokens import WORKER, Token
from mloc_dagster.spec import SpecError
from mloc_dagster.spec.document import NAME

_LOOK_SECONDS = 0.2
_STOPPED = 143
_MOST_WAIT_SECONDS = 30.0
_MOST_ATTEMPTS = 1000
_OFFSET = Parameter("offset", "The place of its first byte.", "integer", 0, 0, 1 << 50)
_NO_JSON = "send JSON of the shape that this version of mloc worker sends"


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


_KIND = TypeVar("_KIND", bound=_Message)


class _Entry(_Message):
    """What a machine says of itself; `name`: as its token is called where it is empty."""

    name: str
    instance: str = Field(pattern="^[0-9a-f]{32}$")
    host: str = Field(max_length=253)
    version: str
    cpu: int = Field(gt=0)
    memory: int = Field(gt=0)
    devices: tuple[Device, ...] = Field(default=(), max_length=256)


class _Question(_Message):
    """What a machine holds, what of that it ends already, and how many seconds it waits for an answer."""

    instance: str
    holding: tuple[str, ...] = Field(max_length=_MOST_ATTEMPTS)
    stopping: tuple[str, ...] = Field(max_length=_MOST_ATTEMPTS)
    wait: float = Field(ge=0, le=_MOST_WAIT_SECONDS)


class _Told(_Message):
    """How an attempt ended."""

    code: int | None
    words: str = Field(default="", max_length=20_000)


class Pulling:
    """The endpoints of machines that reach out."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._desk, self._registry = Desk(backend.home), Registry(backend.home)

    def endpoints(self) -> list[Endpoint]:
        """Return them."""
        json, scope = ("application/json",), WORKER
        raw = ("application/octet-stream",)
        return [
            Endpoint("POST", "/pull", self.enter, "Enter a machine that asks for work.", shapes.Entered, scope=scope,
                     takes=json, problems=(400, 409, 415, 422)),
            Endpoint("POST", "/pull/{worker}/next", self.next, "Wait for what is to be begun, ended or forgotten.",
                     shapes.Work, scope=scope, takes=json, problems=(400, 409, 415, 422, 428)),
            Endpoint("POST", "/pull/{worker}/attempts/{attempt}/log", self.log, "Add to the log of an attempt.",
                     shapes.Arrival, scope=scope, query=(_OFFSET,), takes=raw, problems=(400, 409, 410, 422)),
            Endpoint("POST", "/pull/{worker}/attempts/{attempt}/end", self.end, "Tell how an attempt ended.",
                     shapes.Arrival, scope=scope, takes=json, problems=(400, 410, 415, 422)),
        ]  # fmt: skip

    async def enter(self, request: Request, _given: Given) -> Response:
        """Keep what a machine says of itself."""
        told = await _read(request, _Entry)
        token: Token = request.scope["mloc.token"]
        return JSONResponse(await self._backend.thread(partial(self._enter, told, token)))

    async def next(self, request: Request, _given: Given) -> Response:
        """Answer as soon as there is something to do."""
        name, asked = worker_of(request), await _read(request, _Question)
        until = time.monotonic() + asked.wait
        while True:
            work = await self._backend.look(partial(self._work, name, asked))
            if any(work.values()) or time.monotonic() > until or await request.is_disconnected():
                return JSONResponse(work)
            await asyncio.sleep(_LOOK_SECONDS)

    async def log(self, request: Request, given: Given) -> Response:
        """Add what is not there yet."""
        order = await self._order(request)
        block = await body_of(request)
        try:
            offset = given.integer("offset")
            size = await self._backend.thread(partial(self._desk.append, order.attempt, offset, block))
        except GivenUp:
            raise given_up(order.attempt) from None
        except Gap as gap:
            what = f"the log has {gap.size} bytes, this part begins at {given.integer('offset')}"
            raise Problem(409, what, "send what is missing", arrived=gap.size) from None
        return JSONResponse({"arrived": size})

    async def end(self, request: Request, _given: Given) -> Response:
        """Note how an attempt ended, once."""
        order, told = await self._order(request), await _read(request, _Told)
        gone = "" if told.code is not None else f"ended: {told.words}"
        end = End(code=told.code, words=gone or told.words, cause=Cause.WORKER_LOST if gone else None)
        try:
            await self._backend.thread(partial(self._desk.end, order.attempt, end))
        except GivenUp:
            raise given_up(order.attempt) from None
        return JSONResponse({"arrived": 1})

    async def _order(self, request: Request) -> PullOrder:
        return await self._backend.thread(partial(order_of, self._desk, self._registry, request))

    def _enter(self, told: _Entry, token: Token) -> shapes.Entered:
        name = told.name or token.name
        require_own(name, token)
        if told.version != __version__:
            what = f"this worker has MLOC {told.version}, the service {__version__}"
            raise Problem(409, what, "install the same version on both")
        fleet = self._fleet()
        engine = fleet.engines.get(name, Pull())
        declared = next((worker for worker in fleet.workers if worker.name == name), None)
        if not isinstance(engine, Pull) or (declared is not None and name not in fleet.engines):
            what = f"{name} is a worker of another kind"
            raise Problem(409, what, "give it pull: {} in workers.yaml, or this machine another --name")
        before = self._registry.get(name)
        if before is not None and before.instance != told.instance and self._registry.connected(name):
            what = f"{name} is connected from {before.host} already"
            raise Problem(409, what, "end that one, wait a minute, or give this machine another --name")
        self._registry.enter(Registered(**{**dict(told), "name": name}))
        knock(self._backend.home.dagster)
        return {"name": name, "away_seconds": engine.away_seconds}

    def _work(self, name: str, asked: _Question) -> shapes.Work:
        entered = self._registry.get(name)
        if entered is None:
            raise Problem(428, f"{name} is not entered", "enter it with POST /api/v1/pull")
        if entered.instance != asked.instance:
            what = f"{name} is served from {entered.host} now"
            raise Problem(409, what, "give this machine another --name")
        self._registry.heard(name)
        work: shapes.Work = {"begin": [], "stop": [], "gone": []}
        there = {order.attempt: order for order in self._desk.orders(name)}
        work["gone"] = [attempt for attempt in asked.holding if attempt not in there]
        engine = self._fleet().engines.get(name)
        for attempt, order in there.items():
            if self._desk.ending(attempt) is not None:
                continue
            stop = self._desk.stopping(attempt)
            if attempt in asked.holding:
                if stop and (stop.kill or attempt not in asked.stopping):
                    work["stop"].append({"attempt": attempt, "kill": stop.kill})
            elif stop:
                self._desk.end(attempt, End(code=_STOPPED, words="it was not begun"))
            elif isinstance(engine, Pull):
                work["begin"].extend(self._assignment(order))
        return work

    def _assignment(self, order: PullOrder) -> list[shapes.Assignment]:
        """What a machine needs to begin; nothing when it cannot be had, which is the attempt's end then."""
        missing = [name for name in order.names if name not in os.environ]
        if missing:
            words = f"needs the environment variables {', '.join(missing)}, which the service does not have; "
            words += "set them where it is started (mloc up)"
            self._desk.end(order.attempt, End(code=None, words=words, cause=Cause.USER))
            return []
        environment = {name: os.environ[name] for name in order.names}
        return [{
            "attempt": order.attempt, "key": order.key, "memory": order.memory, "devices": list(order.devices),
            "grace": order.grace, "environment": environment,
        }]  # fmt: skip

    def _fleet(self) -> Fleet:
        try:
            return fleet_of(self._backend.home)
        except SpecError as error:
            raise Problem(503, f"workers.yaml has faults: {error.faults[0]}", "mend it where the service is") from None


def worker_of(request: Request) -> str:
    """Return the worker of a path; raises Problem unless the request's token may serve as it."""
    name = request.path_params["worker"]
    require_own(name, request.scope["mloc.token"])
    return name


def require_own(name: str, token: Token) -> None:
    """Raise Problem unless a token may serve as a worker: of its own name, or of that with a suffix (`lab-2`)."""
    if re.fullmatch(NAME, name) is None:
        raise Problem(422, f"{name[:80]!r} is no name of a worker", "use letters, digits, dots, dashes, underscores")
    if name != token.name and not name.startswith(f"{token.name}-"):
        what = f"the token {token.name!r} is not for the worker {name!r}"
        raise Problem(403, what, f"make one with: mloc token create {name} --scope worker")


def order_of(desk: Desk, registry: Registry, request: Request) -> PullOrder:
    """Return the attempt of a path, and note that its worker lives; raises Problem when it is not that worker's."""
    name = worker_of(request)
    order = desk.order(request.path_params["attempt"])
    if order is None or order.worker != name:
        raise given_up(request.path_params["attempt"])
    registry.heard(name)
    return order


def given_up(attempt: str) -> Problem:
    """Return the problem of an attempt that nobody wants any more."""
    return Problem(410, f"the attempt {attempt[:40]} was given up, or is not known here", "end it; it counts no more")


async def body_of(request: Request) -> bytes:
    """Return a raw body; the guard bounds it."""
    try:
        return await request.body()
    except ClientDisconnect:
        raise Problem(400, "the body ended early", "send it again") from None


async def _read(request: Request, kind: type[_KIND]) -> _KIND:
    try:
        return kind.model_validate(await read_json(request))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise Problem(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}", _NO_JSON) from None
