"""`/tasks/{id}/logs` and `/tasks/{id}/events`: what a task tells, while it does."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from functools import partial

from dagster import DagsterRunStatus
from dagster._core.utils import is_valid_run_id
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from mloc_dagster.definitions.logs import TaskLog, stages_of_run
from mloc_dagster.service.backend import Backend
from mloc_dagster.service.endpoint import Endpoint, Given, Parameter
from mloc_dagster.service.problems import Problem
from mloc_dagster.service.rows import STATES
from mloc_dagster.spec import load_text
from mloc_dagster.spec.faults import nearest

_LOOK_SECONDS = 0.5
_SIGN_SECONDS = 15.0
"""So often a stream that has nothing to tell says that it lives, or a proxy would end it."""
_MOST_BYTES = 1 << 18
"""So much text is held at a time."""
_EVENTS = 200
_MOST_STREAMS, _MOST_OF_ONE = 64, 32
"""Of all, and of one token."""
_WAITS = STATES["ACCEPTED"]


class Streams:
    """The endpoints that tell of a task bit by bit; so many at once, since each looks twice a second."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self._instance = backend, backend.instance
        self._open: Counter[str] = Counter()

    def endpoints(self) -> list[Endpoint]:
        """Return them."""
        return [
            Endpoint(
                "GET", "/tasks/{id}/logs", self.logs, "What its steps wrote, as lines of text.", None,
                query=(
                    Parameter("follow", "Go on until it ends; an empty line says that it lives.", "boolean", False),
                    Parameter("stage", "Only what this stage wrote."),
                ),
                media="text/plain", problems=(404, 422, 503),
            ),
            Endpoint(
                "GET", "/tasks/{id}/events", self.events,
                "Its events as server-sent ones, to its end; Last-Event-ID goes on after one.", None,
                media="text/event-stream", problems=(404, 422, 503),
            ),
        ]  # fmt: skip

    async def logs(self, request: Request, given: Given) -> Response:
        """Stream lines."""
        number = request.path_params["id"]
        await self._known(number)
        await self._backend.look(partial(self._check_stage, number, given.text("stage")))
        whose = self._checked_room(request)
        log = TaskLog(self._instance, self._backend.home, number, given.text("stage"))
        lines = self._lines(number, log, given.flag("follow"), whose)
        return StreamingResponse(lines, media_type="text/plain; charset=utf-8", headers=_headers())

    async def events(self, request: Request, _given: Given) -> Response:
        """Stream events; the id of each is a cursor of Dagster's event log."""
        number, last = request.path_params["id"], request.headers.get("last-event-id")
        await self._known(number)
        if last is not None:
            await self._backend.look(partial(self._check_cursor, number, last))
        whose = self._checked_room(request)
        return StreamingResponse(self._events(number, last, whose), media_type="text/event-stream", headers=_headers())

    async def _lines(self, number: str, log: TaskLog, follow: bool, whose: str) -> AsyncIterator[bytes]:
        said = time.monotonic()
        self._open[whose] += 1
        try:
            while True:
                over = await self._backend.look(partial(self._over, number))
                found = log.new(last=over or not follow)
                while part := await self._backend.look(partial(_part, found)):
                    said = time.monotonic()
                    yield part
                if over or not follow:
                    return
                if time.monotonic() - said > _SIGN_SECONDS:
                    said = time.monotonic()
                    yield b"\n"
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            self._open[whose] -= 1

    async def _events(self, number: str, cursor: str | None, whose: str) -> AsyncIterator[bytes]:
        said = time.monotonic()
        self._open[whose] += 1
        try:
            yield b"retry: 2000\n\n"
            while True:
                over = await self._backend.look(partial(self._over, number))
                while True:
                    told, cursor, more = await self._backend.look(partial(self._next, number, cursor))
                    if told:
                        said = time.monotonic()
                        yield told
                    if not more:
                        break
                if over:
                    status = await self._backend.look(partial(self._status, number))
                    yield _event("end", {"status": status}, None)
                    return
                if time.monotonic() - said > _SIGN_SECONDS:
                    said = time.monotonic()
                    yield b": waiting\n\n"
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            self._open[whose] -= 1

    def _next(self, number: str, cursor: str | None) -> tuple[bytes, str | None, bool]:
        if not self._instance.has_run(number):
            return b"", cursor, False
        found = self._instance.get_records_for_run(number, cursor=cursor, limit=_EVENTS)
        told = b""
        for place, record in enumerate(found.records, 1):
            entry = record.event_log_entry
            kind = entry.dagster_event_type.name if entry.dagster_event_type else "LOG"
            step = (entry.step_key or "").replace("__", "/") or None
            data = {"at": entry.timestamp, "type": kind, "step": step, "message": entry.user_message or entry.message}
            told += _event(kind, data, found.cursor if place == len(found.records) else None)
        return told, found.cursor, found.has_more

    def _check_cursor(self, number: str, cursor: str) -> None:
        try:
            self._next(number, cursor)
        except Exception:
            raise Problem(422, f"Last-Event-ID {cursor[:80]!r} is none of ours", "begin again without it") from None

    def _over(self, number: str) -> bool:
        return self._status(number) in _ENDED

    def _status(self, number: str) -> str:
        for _ in range(2):  # it may go from the intake to Dagster between the two looks
            run = self._instance.get_run_by_id(number)
            if run is not None:
                return run.status.value
            one = self._backend.intake.get(number)
            if one is not None:
                return "ACCEPTED" if one.state in _WAITS else one.state.upper()
        return "DELETED"

    def _check_stage(self, number: str, stage: str | None) -> None:
        if stage is None:
            return
        there = stages_of_run(self._instance, number)
        one = None if there else self._backend.intake.get(number)
        if one is not None:
            there = {found.name for found in load_text(one.text, name=one.name, base=one.base).stages}
        if there and stage not in there:
            guess = nearest(stage, tuple(there))
            way_out = f"did you mean {guess}?" if guess else f"there are {', '.join(sorted(there))}"
            raise Problem(422, f"there is no stage {stage[:80]!r} in {number}", way_out)

    async def _known(self, number: str) -> None:
        if is_valid_run_id(number):
            status = await self._backend.look(partial(self._status, number))
            if status != "DELETED":
                return
        raise Problem(404, f"there is no task {number[:80]!r}", "GET /api/v1/tasks lists them")

    def _checked_room(self, request: Request) -> str:
        """Return the name of the request's token, under which a stream is counted."""
        whose = request.scope["mloc.token"].name
        for open_now, most in ((self._open.total(), _MOST_STREAMS), (self._open[whose], _MOST_OF_ONE)):
            if open_now >= most:
                what = f"{open_now} logs and event streams are open, which is the most"
                what += f" for the token {whose!r}" if most == _MOST_OF_ONE else ""
                raise Problem(503, what, "ask again later, or close some", headers={"Retry-After": "10"})
        return whose


_ENDED = {
    *(status.value for status in (DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)),
    "CANCELED", "REFUSED", "DELETED",
}  # fmt: skip


def _part(lines: Iterator[str]) -> bytes:
    """The next lines as bytes, no more than are held at a time; empty when there are none."""
    part = bytearray()
    for line in lines:
        part += line.encode("utf-8", "replace") + b"\n"
        if len(part) >= _MOST_BYTES:
            break
    return bytes(part)


def _headers() -> dict[str, str]:
    return {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def _event(kind: str, data: dict[str, object], cursor: str | None) -> bytes:
    head = f"id: {cursor}\n" if cursor else ""
    return f"{head}event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode("utf-8", "replace")
