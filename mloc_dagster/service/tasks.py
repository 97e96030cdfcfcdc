"""`/api/v1/tasks`: submit, list, look at, cancel. What blocks runs in a few threads, never on the event loop."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from dagster import DagsterInstance, DagsterRunStatus, RunsFilter
from dagster._core.storage.dagster_run import RunRecord
from dagster._core.utils import is_valid_run_id, make_new_run_id
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mloc_dagster.definitions.submit import submitted_job
from mloc_dagster.placement.queue.asked import WAITING
from mloc_dagster.plan import compile_plan
from mloc_dagster.service import bodies, problems
from mloc_dagster.service.bodies import Document
from mloc_dagster.service.intake import Accepted, Intake, State
from mloc_dagster.service.problems import Problem
from mloc_dagster.spec import SpecError, load_text
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.faults import Fault, nearest, shown
from mloc_dagster.spec.taskfile import TaskFile

SUBMITTED_BY = "mloc/submitted_by"
"""Run tag: the name of the token that a task came with."""
ACCEPTED = "ACCEPTED"
_log = logging.getLogger("mloc")
_STATES: Mapping[str, tuple[State, ...]] = {
    ACCEPTED: ("waiting", "feeding"), "CANCELED": ("canceled",), "FAILURE": ("refused",),
}  # fmt: skip
_STATUS = {state: status for status, states in _STATES.items() for state in states}
_IN_DAGSTER = tuple(status.value for status in DagsterRunStatus)
_MOST_A_PAGE = 500
_DEEPEST = 10_000
_AT_ONCE = 50
"""So many tasks of a bulk are checked before other requests have a turn."""
_THREADS = 4
_LONGEST = 200
_BETWEEN_SECONDS = 5.0
"""So long a task may be on its way from the intake to Dagster."""
T = TypeVar("T")


@dataclass(frozen=True)
class _Checked:
    task: TaskFile
    warnings: tuple[Json, ...]


class Tasks:
    """The endpoints, over one instance. `knock` wakes the feeders; relative paths in tasks start from `base`."""

    def __init__(self, instance: DagsterInstance, intake: Intake, knock: Callable[[], None], base: Path) -> None:
        self._instance, self._intake, self._knock, self._base = instance, intake, knock, base
        self._limiter: CapacityLimiter | None = None

    def routes(self) -> list[Route]:
        """Return the routes below `/api/v1`."""
        return [
            Route("/tasks", self.submit, methods=["POST"]),
            Route("/tasks", self.list, methods=["GET"]),
            Route("/tasks/bulk", self.bulk, methods=["POST"]),
            Route("/tasks/{id}", self.show, methods=["GET"]),
            Route("/tasks/{id}", self.cancel, methods=["DELETE"]),
        ]

    async def submit(self, request: Request) -> Response:
        """Check one task, and take it in unless `dry_run` is set."""
        options = _options(request)
        document = await bodies.one(request)
        answer = await self._thread(partial(self._take, [document], options, _sender(request)))
        found = answer[0]
        if isinstance(found, Problem):
            raise found
        if options.dry_run:
            return JSONResponse(found)
        return JSONResponse(found, 201, headers={"Location": f"/api/v1/tasks/{found['id']}"})

    async def bulk(self, request: Request) -> Response:
        """Check many tasks and take in those without faults; each is answered for itself."""
        options = _options(request)
        documents = await bodies.several(request)
        answers: list[dict[str, Json]] = []
        for start in range(0, len(documents), _AT_ONCE):
            part = documents[start : start + _AT_ONCE]
            found = await self._thread(partial(self._take, part, options, _sender(request)))
            answers += [one.as_dict() if isinstance(one, Problem) else {**one, "code": 201} for one in found]
        refused = sum("detail" in one for one in answers)
        told = {"accepted": len(answers) - refused, "refused": refused, "tasks": answers}
        return JSONResponse(told, 207 if refused else 200 if options.dry_run else 201)

    async def list(self, request: Request) -> Response:
        """Tell of tasks, newest first: a page by its number, or what comes after a cursor.

        A task that goes from the intake to Dagster between two pages may be told of twice; none is left out.
        """
        return JSONResponse(await self._thread(partial(self._listed, _Asked.of(request))))

    async def show(self, request: Request) -> Response:
        """Tell of one task."""
        found = await self._thread(partial(self._found, request.path_params["id"]))
        return JSONResponse(found)

    async def cancel(self, request: Request) -> Response:
        """Cancel a task, whether it waits or runs; its processes are ended."""
        number = request.path_params["id"]
        until = time.monotonic() + _BETWEEN_SECONDS
        while True:
            found = await self._thread(partial(self._canceled, number))
            if found is not None:
                return JSONResponse(found, 202)
            if time.monotonic() > until:
                raise Problem(503, f"{number} is on its way into the queue", "ask again", headers={"Retry-After": "1"})
            await asyncio.sleep(0.05)

    async def _thread(self, work: Callable[[], T]) -> T:
        if self._limiter is None:
            self._limiter = CapacityLimiter(_THREADS)
        return await to_thread.run_sync(work, limiter=self._limiter)

    def _take(self, documents: Sequence[Document], options: _Options, sender: str) -> list[dict[str, Json] | Problem]:
        answers: list[dict[str, Json] | Problem] = []
        accepted: list[Accepted] = []
        for document in documents:
            try:
                checked = self._check(document)
            except SpecError as error:
                answers.append(problems.of_faults(error.faults))
                continue
            except Exception:  # a fault of ours in one task is not the others'
                _log.exception("a task could not be checked")
                answers.append(Problem(500, "this task could not be checked", "the log of the service says why"))
                continue
            if options.dry_run:
                answers.append(_dry(checked))
                continue
            one = self._accept(document, checked.task, options, sender)
            accepted.append(one)
            answers.append({**_row_of(one), "warnings": list(checked.warnings)})
        if accepted and not self._added(accepted):
            later = Problem(503, "the task could not be stored", "send it again", headers={"Retry-After": "1"})
            return [one if isinstance(one, Problem) else later for one in answers]
        return answers

    def _added(self, accepted: Sequence[Accepted]) -> bool:
        try:
            self._intake.add(accepted)
        except Exception:  # those of the parts before are stored, and the client must learn their ids
            _log.exception("%d tasks could not be stored", len(accepted))
            return False
        self._knock()
        return True

    def _check(self, document: Document) -> _Checked:
        try:
            task = load_text(document.text, file=document.file, name=document.name, base=self._base)
            plan = compile_plan(task)
            _storable(task, document.file)
        except SpecError as error:
            raise SpecError([replace(f, line=f.line + document.line if f.line else 0) for f in error.faults]) from None
        warnings = {*task.warnings, *plan.warnings}
        moved = sorted(replace(one, line=one.line + document.line if one.line else 0) for one in warnings)
        return _Checked(task, tuple(problems.as_json(one) for one in moved))

    def _accept(self, document: Document, task: TaskFile, options: _Options, sender: str) -> Accepted:
        tags = {SUBMITTED_BY: sender} | ({"dagster/priority": str(options.priority)} if options.priority else {})
        return Accepted(
            make_new_run_id(), task.name, task.owner, task.project, submitted_job(task), document.text, document.name,
            self._base, options.fresh, tags,
        )  # fmt: skip

    def _found(self, number: str) -> dict[str, Json]:
        for _ in range(
            2 if is_valid_run_id(number) else 0
        ):  # it may go from the intake to Dagster between the two looks
            records = self._instance.get_run_records(RunsFilter(run_ids=[number]), limit=1)
            if records:
                return _row_of_run(records[0])
            one = self._intake.get(number)
            if one is not None:
                return _row_of(one)
        raise Problem(404, f"there is no task {number[:80]!r}", "GET /api/v1/tasks lists them")

    def _canceled(self, number: str) -> dict[str, Json] | None:
        """Cancel a task and tell of it; None while it is on its way from the intake to Dagster."""
        found = self._found(number)
        if found["status"] == ACCEPTED:
            return self._found(number) if self._intake.cancel(number) else None
        if DagsterRunStatus(found["status"]) in _OVER:
            raise Problem(409, f"{number} is {found['status']} already", "there is nothing to cancel")
        if not self._instance.run_coordinator.cancel_run(number):
            raise Problem(409, f"{number} could not be cancelled", f"see GET /api/v1/tasks/{number}")
        return self._found(number)

    def _listed(self, asked: _Asked) -> dict[str, Json]:
        first = self._first(asked)
        skipped = 0 if asked.run_id else (asked.page - 1) * asked.size
        found = [(f"{one.position}.{one.run_id}", _row_of(one)) for one in first[skipped : skipped + asked.size + 1]]
        missing = asked.size + 1 - len(found)
        records = self._of_dagster(asked, max(0, skipped - len(first)), missing) if missing else []
        found += [(record.dagster_run.run_id, _row_of_run(record)) for record in records]
        rows = [row for _, row in found[: asked.size]]
        cursor = found[asked.size - 1][0] if len(found) > asked.size else None
        page = None if asked.run_id else asked.page
        return {"tasks": rows, "page": page, "page_size": asked.size, "cursor": cursor}

    def _first(self, asked: _Asked) -> list[Accepted]:
        """What the intake has of it: it comes first, being newer than all runs."""
        states: list[State] = [state for status, held in _STATES.items() if status in asked.statuses for state in held]
        if not states or (asked.run_id and asked.position is None):
            return []
        limit = asked.page * asked.size + 1
        found = self._intake.list(states, asked.owner, asked.project, limit, before=asked.position)
        begun = [one.run_id for one in found if one.state == "feeding"]
        there = set(self._instance.get_run_ids(RunsFilter(run_ids=begun))) if begun else set()
        return [one for one in found if one.run_id not in there]

    def _of_dagster(self, asked: _Asked, skipped: int, limit: int) -> Sequence[RunRecord]:
        statuses = [DagsterRunStatus(status) for status in asked.statuses if status in _IN_DAGSTER]
        if not statuses:
            return []
        tags = {"mloc/owner": asked.owner, "mloc/project": asked.project}
        wanted = RunsFilter(
            statuses=statuses if len(statuses) < len(_IN_DAGSTER) else None,
            tags={key: value for key, value in tags.items() if value},
        )
        cursor = asked.run_id if asked.position is None else None
        if cursor and not self._instance.has_run(cursor):
            raise Problem(422, f"the cursor {cursor[:80]!r} is not known", "begin again without it")
        if skipped:
            before = self._instance.get_run_ids(wanted, limit=skipped)
            if len(before) < skipped:
                return []
            cursor = before[-1]
        return self._instance.get_run_records(wanted, limit=limit, cursor=cursor)


_OVER = (DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)


@dataclass(frozen=True)
class _Options:
    """What a submission may set beside its body."""

    dry_run: bool = False
    fresh: bool = False
    priority: int = 0


@dataclass(frozen=True)
class _Asked:
    """What a list may be narrowed to."""

    statuses: tuple[str, ...]
    owner: str | None
    project: str | None
    page: int
    size: int
    run_id: str | None
    """The last task that was told of before; `position`: its place in the intake, when it was there."""
    position: int | None

    @classmethod
    def of(cls, request: Request) -> _Asked:
        given = _query(request, "page", "page_size", "status", "owner", "project", "cursor")
        page, size = _number(given, "page", 1, 1, _DEEPEST), _number(given, "page_size", 50, 1, _MOST_A_PAGE)
        if page * size > _DEEPEST:
            raise Problem(422, f"page {page} of {size} lies beyond {_DEEPEST} tasks", "go on with cursor instead")
        if "cursor" in given and "page" in given:
            raise Problem(422, "page and cursor are two ways to go on", "leave one of them out")
        known = [ACCEPTED, *_IN_DAGSTER]
        statuses = tuple(one.strip().upper() for one in given.get("status", ",".join(known)).split(","))
        for status in statuses:
            if status not in known:
                guess = nearest(status, known)
                way_out = f"did you mean {guess}?" if guess else f"there are {', '.join(known)}"
                raise Problem(422, f"there is no status {status[:40]!r}", way_out)
        place, _, run_id = given.get("cursor", "").rpartition(".")
        if place and not (place.isascii() and place.isdecimal() and len(place) < 16):
            raise Problem(422, f"the cursor {given['cursor'][:80]!r} is none of ours", "begin again without it")
        position = int(place) if place else None
        return cls(statuses, given.get("owner"), given.get("project"), page, size, run_id or None, position)


def _options(request: Request) -> _Options:
    given = _query(request, "dry_run", "fresh", "priority")
    priority = _number(given, "priority", 0, -1_000_000, 1_000_000)
    return _Options(_flag(given, "dry_run"), _flag(given, "fresh"), priority)


def _query(request: Request, *names: str) -> dict[str, str]:
    given = dict(request.query_params)
    for name in given:
        if name not in names:
            guess = nearest(name, names)
            way_out = f"did you mean {guess}?" if guess else f"there are {', '.join(names)}"
            raise Problem(422, f"there is no query parameter {name[:80]!r}", way_out)
    for name, value in given.items():
        if "\0" in value:
            raise Problem(422, f"{name} holds a null character", "remove it")
    return given


def _flag(given: Mapping[str, str], name: str) -> bool:
    value = given.get(name, "false").lower()
    if value not in ("true", "false", "1", "0"):
        raise Problem(422, f"{name} is {value[:40]!r}", "write true or false")
    return value in ("true", "1")


def _number(given: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    try:
        value = int(given.get(name, default))
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise Problem(422, f"{name} is {given[name][:40]!r}", f"write a whole number from {least} to {most}")
    return int(value)


def _sender(request: Request) -> str:
    return request.scope["mloc.token"].name


def _storable(task: TaskFile, file: str) -> None:
    """Raise SpecError for a text that no database takes."""
    for path, value in (
        ("metadata.name", task.name),
        ("metadata.owner", task.owner),
        ("metadata.project", task.project),
    ):
        if "\0" in value or not value.isprintable() or len(value) > _LONGEST:
            way_out = f"write at most {_LONGEST} printable characters"
            raise SpecError([Fault(0, 0, path, "cannot be stored", shown(value), way_out, file)])


def _dry(checked: _Checked) -> dict[str, Json]:
    task = checked.task
    stages = [{"name": stage.name, "taskType": stage.spec.task_type} for stage in task.stages]
    told = {"task": task.name, "owner": task.owner, "project": task.project, "job": submitted_job(task)}
    return {"dry_run": True, **told, "stages": stages, "warnings": list(checked.warnings)}


def _row_of(one: Accepted) -> dict[str, Json]:
    told: dict[str, Any] = {
        "id": one.run_id,
        "run_id": one.run_id,
        "job": one.job,
        "task": one.task,
        "owner": one.owner,
        "project": one.project,
        "status": _STATUS[one.state],
        "created": one.accepted_at,
        "started": None,
        "ended": None,
    }
    return {**told, "error": one.error} if one.error else told


def _row_of_run(record: RunRecord) -> dict[str, Json]:
    run = record.dagster_run
    told: dict[str, Any] = {
        "id": run.run_id,
        "run_id": run.run_id,
        "job": run.job_name,
        "task": run.tags.get("mloc/task") or run.job_name,
        "owner": run.tags.get("mloc/owner"),
        "project": run.tags.get("mloc/project"),
        "status": run.status.value,
        "created": record.create_timestamp.timestamp(),
        "started": record.start_time,
        "ended": record.end_time,
    }
    waits = run.tags.get(WAITING) if run.status is DagsterRunStatus.QUEUED else None
    return {**told, "waiting": waits} if waits else told
