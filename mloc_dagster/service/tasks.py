"""`/api/v1/tasks`: submit, list, look at, cancel, replay. What blocks runs in threads, never on the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from dagster import DagsterRunStatus, RunsFilter
from dagster._core.utils import is_valid_run_id, make_new_run_id
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mloc_dagster.client import shapes
from mloc_dagster.definitions.replay import ReplayRefused
from mloc_dagster.definitions.replay import replay as start_again
from mloc_dagster.definitions.submit import submitted_job
from mloc_dagster.placement.queue.asked import type_tag, types_of
from mloc_dagster.plan import Plan, compile_plan
from mloc_dagster.service import bodies, listing, problems
from mloc_dagster.service.backend import Backend
from mloc_dagster.service.bodies import Document
from mloc_dagster.service.endpoint import Endpoint, Given, Parameter
from mloc_dagster.service.intake import Accepted
from mloc_dagster.service.problems import Problem
from mloc_dagster.service.rows import ACCEPTED, row_of, row_of_run
from mloc_dagster.spec import SpecError, load_text
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.faults import Fault, shown
from mloc_dagster.spec.taskfile import TaskFile
from mloc_dagster.telemetry.traceparent import HEADER, TAG
from mloc_dagster.usage.budgets import BudgetExceeded, check

SUBMITTED_BY = "mloc/submitted_by"
"""Run tag: the name of the token that a task came with."""
_log = logging.getLogger("mloc")
_AT_ONCE = 50
"""So many tasks of a bulk are checked before other requests have a turn."""
_LONGEST = 200
_BETWEEN_SECONDS = 5.0
"""So long a task may be on its way from the intake to Dagster."""
_OVER = (DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)
_BODIES = ("text/yaml", "application/json", "multipart/form-data")
_SUBMITTING = (
    Parameter("dry_run", "Only check.", "boolean", False),
    Parameter("fresh", "Do the work again, also what an earlier run has done already.", "boolean", False),
    Parameter("priority", "Runs of higher priority begin first.", "integer", 0, -1_000_000, 1_000_000),
)


@dataclass(frozen=True)
class _Checked:
    task: TaskFile
    plan: Plan
    warnings: tuple[Json, ...]


class Tasks:
    """The endpoints of tasks."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self._instance, self._intake = backend, backend.instance, backend.intake

    def endpoints(self) -> list[Endpoint]:
        """Return them, those with fixed names first."""
        return [
            Endpoint(
                "POST", "/tasks", self.submit, "Submit a task file.", shapes.Submitted, 201, "submit", _SUBMITTING,
                _BODIES, problems=(400, 408, 413, 415, 422, 503), also={200: "With dry_run: it has no faults."},
            ),
            Endpoint("GET", "/tasks", self.list, "List tasks, newest first.", shapes.TaskPage, query=listing.PARAMETERS,
                     problems=(422,)),
            Endpoint(
                "POST", "/tasks/bulk", self.bulk, "Submit many task files, each answered for itself.", shapes.Bulk, 201,
                "submit", _SUBMITTING, _BODIES, problems=(400, 408, 413, 415, 422),
                also={200: "With dry_run: none has faults.", 207: "Some were refused."},
            ),
            Endpoint("GET", "/tasks/{id}", self.show, "Tell of a task.", shapes.Task, problems=(404,)),
            Endpoint("DELETE", "/tasks/{id}", self.cancel, "Cancel a task.", shapes.Task, 202, "submit",
                     problems=(404, 409, 503)),
            Endpoint("POST", "/tasks/{id}/replay", self.replay, "Do a task again that failed or was cancelled.",
                     shapes.Task, 201, "submit", problems=(404, 409, 422, 503)),
        ]  # fmt: skip

    async def submit(self, request: Request, given: Given) -> Response:
        """Check one task, and take it in unless `dry_run` is set."""
        options = _Options.of(given)
        with self._backend.traces.span("submit", request.headers.get(HEADER), {"mloc.token": _sender(request)}) as span:
            document = await bodies.one(request)
            answer = await self._backend.thread(partial(self._take, [document], options, _sender(request), span))
        found = answer[0]
        if isinstance(found, Problem):
            raise found
        if options.dry_run:
            return JSONResponse(found)
        return JSONResponse(found, 201, headers={"Location": f"/api/v1/tasks/{found['id']}"})

    async def bulk(self, request: Request, given: Given) -> Response:
        """Check many tasks and take in those without faults; each is answered for itself."""
        options = _Options.of(given)
        answers: list[dict[str, Json]] = []
        with self._backend.traces.span("submit", request.headers.get(HEADER), {"mloc.token": _sender(request)}) as span:
            documents = await bodies.several(request)
            for start in range(0, len(documents), _AT_ONCE):
                part = documents[start : start + _AT_ONCE]
                found = await self._backend.thread(partial(self._take, part, options, _sender(request), span))
                answers += [one.as_dict() if isinstance(one, Problem) else {**one, "code": 201} for one in found]
        refused = sum("detail" in one for one in answers)
        told = {"accepted": len(answers) - refused, "refused": refused, "tasks": answers}
        return JSONResponse(told, 207 if refused else 200 if options.dry_run else 201)

    async def list(self, _request: Request, given: Given) -> Response:
        """Tell of tasks, newest first: a page by its number, or what comes after a cursor."""
        work = partial(listing.listed, self._instance, self._intake, listing.Asked.of(given))
        return JSONResponse(await self._backend.thread(work))

    async def show(self, request: Request, _given: Given) -> Response:
        """Tell of one task."""
        return JSONResponse(await self._backend.thread(partial(self._found, request.path_params["id"])))

    async def replay(self, request: Request, _given: Given) -> Response:
        """Start a task again from what it had finished."""
        found = await self._backend.thread(partial(self._replayed, request.path_params["id"]))
        return JSONResponse(found, 201, headers={"Location": f"/api/v1/tasks/{found['id']}"})

    async def cancel(self, request: Request, _given: Given) -> Response:
        """Cancel a task, whether it waits or runs; its processes are ended."""
        number = request.path_params["id"]
        until = time.monotonic() + _BETWEEN_SECONDS
        while True:
            found = await self._backend.thread(partial(self._canceled, number))
            if found is not None:
                return JSONResponse(found, 202)
            if time.monotonic() > until:
                raise Problem(503, f"{number} is on its way into the queue", "ask again", headers={"Retry-After": "1"})
            await asyncio.sleep(0.05)

    def _take(
        self, documents: Sequence[Document], options: _Options, sender: str, span: str | None
    ) -> list[dict[str, Json] | Problem]:
        answers: list[dict[str, Json] | Problem] = []
        accepted: list[Accepted] = []
        budgets: dict[tuple[str, str], list[str] | Problem] = {}
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
            whose = checked.task.owner, checked.task.project
            if whose not in budgets:
                budgets[whose] = self._budgets(*whose)
            told = budgets[whose]
            if isinstance(told, Problem):
                answers.append(told)
                continue
            one = self._accept(document, checked, options, sender, span)
            accepted.append(one)
            answers.append({"ok": True, **row_of(one), "warnings": list(checked.warnings), "budgets": told})
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
        self._backend.knock()
        return True

    def _check(self, document: Document) -> _Checked:
        try:
            task = load_text(document.text, file=document.file, name=document.name, base=self._backend.base)
            plan = compile_plan(task)
            _storable(task, document.file)
        except SpecError as error:
            raise SpecError([replace(f, line=f.line + document.line if f.line else 0) for f in error.faults]) from None
        warnings = {*task.warnings, *plan.warnings}
        moved = sorted(replace(one, line=one.line + document.line if one.line else 0) for one in warnings)
        return _Checked(task, plan, tuple(problems.as_json(one) for one in moved))

    def _accept(
        self, document: Document, checked: _Checked, options: _Options, sender: str, span: str | None
    ) -> Accepted:
        tags = {SUBMITTED_BY: sender} | dict.fromkeys(map(type_tag, types_of(checked.plan)), "true")
        if options.priority:
            tags["dagster/priority"] = str(options.priority)
        if span:
            tags[TAG] = span
        task = checked.task
        return Accepted(
            make_new_run_id(), task.name, task.owner, task.project, submitted_job(task), document.text, document.name,
            self._backend.base, options.fresh, tags,
        )  # fmt: skip

    def _found(self, number: str) -> shapes.Task:
        for _ in range(
            2 if is_valid_run_id(number) else 0
        ):  # it may go from the intake to Dagster between the two looks
            records = self._instance.get_run_records(RunsFilter(run_ids=[number]), limit=1)
            if records:
                return row_of_run(records[0])
            one = self._intake.get(number)
            if one is not None:
                return row_of(one)
        raise Problem(404, f"there is no task {number[:80]!r}", "GET /api/v1/tasks lists them")

    def _canceled(self, number: str) -> shapes.Task | None:
        """Cancel a task and tell of it; None while it is on its way from the intake to Dagster."""
        found = self._found(number)
        if found["status"] == ACCEPTED:
            return self._found(number) if self._intake.cancel(number) else None
        if DagsterRunStatus(found["status"]) in _OVER:
            raise Problem(409, f"{number} is {found['status']} already", "there is nothing to cancel")
        if not self._instance.run_coordinator.cancel_run(number):
            raise Problem(409, f"{number} could not be cancelled", f"see GET /api/v1/tasks/{number}")
        return self._found(number)

    def _replayed(self, number: str) -> shapes.Task:
        found = self._found(number)
        run = self._instance.get_run_by_id(number)
        if run is None:
            raise Problem(409, f"{number} is {found['status']}, no run yet", "submit its task file again")
        told = self._budgets(run.tags.get("mloc/owner") or "unknown", run.tags.get("mloc/project") or "default")
        if isinstance(told, Problem):
            raise told
        try:
            return self._found(start_again(self._instance, run))
        except ReplayRefused as error:
            raise Problem(409, str(error), error.hint) from None

    def _budgets(self, owner: str, project: str) -> list[str] | Problem:
        """What budgets say to new work: warnings, or that it is refused."""
        try:
            return list(map(str, check(self._instance, self._backend.usage, self._backend.home, owner, project)))
        except BudgetExceeded as error:
            return Problem(403, f"{error}; new work is refused", error.way_out)
        except SpecError as error:
            return Problem(503, "the budgets of this service cannot be read", f"mend them: {error.faults[0]}")


@dataclass(frozen=True)
class _Options:
    """What a submission may set beside its body."""

    dry_run: bool = False
    fresh: bool = False
    priority: int = 0

    @classmethod
    def of(cls, given: Given) -> _Options:
        return cls(given.flag("dry_run"), given.flag("fresh"), given.integer("priority"))


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
