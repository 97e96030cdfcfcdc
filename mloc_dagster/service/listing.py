"""The list of tasks: what the intake has, then the runs of Dagster, newest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from dagster import DagsterInstance, DagsterRunStatus, RunsFilter
from dagster._core.storage.dagster_run import RunRecord

from mloc_dagster.client.shapes import TaskPage
from mloc_dagster.placement.queue.asked import type_tag
from mloc_dagster.service.endpoint import Given, Parameter
from mloc_dagster.service.intake import Accepted, Intake, State
from mloc_dagster.service.problems import Problem
from mloc_dagster.service.rows import ACCEPTED, STATES, STATUSES, row_of, row_of_run
from mloc_dagster.spec.faults import nearest
from mloc_dagster.spec.task_types import known

_MOST_A_PAGE = 500
_DEEPEST = 10_000
PARAMETERS = (
    Parameter("page", "The page, from 1; deep ones are reached by cursor.", "integer", None, 1, _DEEPEST),
    Parameter("page_size", "Tasks a page.", "integer", 50, 1, _MOST_A_PAGE),
    Parameter("status", f"One or several, with commas: {', '.join(STATUSES)}."),
    Parameter("owner", "Only this owner's."),
    Parameter("project", "Only this project's."),
    Parameter("taskType", "Only tasks with a stage of this type."),
    Parameter("since", "Only those created then or later: ISO 8601, or seconds since 1970.", "time"),
    Parameter("cursor", "Goes on after the page before, in place of page."),
)


@dataclass(frozen=True)
class Asked:
    """What a list may be narrowed to."""

    statuses: tuple[str, ...]
    owner: str | None
    project: str | None
    task_type: str | None
    since: float | None
    page: int
    size: int
    run_id: str | None
    """The last task that was told of before; `position`: its place in the intake, when it was there."""
    position: int | None

    @classmethod
    def of(cls, given: Given) -> Asked:
        """Read it from the parameters; raises Problem."""
        page, size = given.integer("page") if given.has("page") else 1, given.integer("page_size")
        if page * size > _DEEPEST:
            raise Problem(422, f"page {page} of {size} lies beyond {_DEEPEST} tasks", "go on with cursor instead")
        cursor = given.text("cursor") or ""
        if given.has("cursor") and given.has("page"):
            raise Problem(422, "page and cursor are two ways to go on", "leave one of them out")
        place, _, run_id = cursor.rpartition(".")
        if place and not (place.isascii() and place.isdecimal() and len(place) < 16):
            raise Problem(422, f"the cursor {cursor[:80]!r} is none of ours", "begin again without it")
        return cls(
            _statuses(given.text("status")), given.text("owner"), given.text("project"), _type(given.text("taskType")),
            given.time("since"), page, size, run_id or None, int(place) if place else None,
        )  # fmt: skip


def listed(instance: DagsterInstance, intake: Intake, asked: Asked) -> TaskPage:
    """Return a page. A task that goes from the intake to Dagster between two pages may be told of twice."""
    first = _first(instance, intake, asked)
    skipped = 0 if asked.run_id else (asked.page - 1) * asked.size
    found = [(f"{one.position}.{one.run_id}", row_of(one)) for one in first[skipped : skipped + asked.size + 1]]
    missing = asked.size + 1 - len(found)
    records = _of_dagster(instance, asked, max(0, skipped - len(first)), missing) if missing else []
    found += [(record.dagster_run.run_id, row_of_run(record)) for record in records]
    rows = [row for _, row in found[: asked.size]]
    cursor = found[asked.size - 1][0] if len(found) > asked.size else None
    page = None if asked.run_id else asked.page
    return {"tasks": rows, "page": page, "page_size": asked.size, "cursor": cursor}


def _first(instance: DagsterInstance, intake: Intake, asked: Asked) -> list[Accepted]:
    """What the intake has of it: it comes first, being newer than all runs."""
    states: list[State] = [state for status, held in STATES.items() if status in asked.statuses for state in held]
    if not states or (asked.run_id and asked.position is None):
        return []
    limit = asked.page * asked.size + 1
    tag = type_tag(asked.task_type) if asked.task_type else None
    found = intake.list(states, asked.owner, asked.project, limit, asked.position, tag=tag, since=asked.since)
    begun = [one.run_id for one in found if one.state == "feeding"]
    there = set(instance.get_run_ids(RunsFilter(run_ids=begun))) if begun else set()
    return [one for one in found if one.run_id not in there]


def _of_dagster(instance: DagsterInstance, asked: Asked, skipped: int, limit: int) -> Sequence[RunRecord]:
    statuses = [DagsterRunStatus(status) for status in asked.statuses if status != ACCEPTED]
    if not statuses:
        return []
    tags = {"mloc/owner": asked.owner, "mloc/project": asked.project}
    if asked.task_type:
        tags[type_tag(asked.task_type)] = "true"
    wanted = RunsFilter(
        statuses=statuses if len(statuses) < len(DagsterRunStatus) else None,
        tags={key: value for key, value in tags.items() if value},
        created_after=datetime.fromtimestamp(asked.since, UTC) if asked.since is not None else None,
    )
    cursor = asked.run_id if asked.position is None else None
    if cursor and not instance.has_run(cursor):
        raise Problem(422, f"the cursor {cursor[:80]!r} is not known", "begin again without it")
    if skipped:
        before = instance.get_run_ids(wanted, limit=skipped)
        if len(before) < skipped:
            return []
        cursor = before[-1]
    return instance.get_run_records(wanted, limit=limit, cursor=cursor)


def _statuses(text: str | None) -> tuple[str, ...]:
    found = tuple(one.strip().upper() for one in text.split(",")) if text is not None else STATUSES
    for status in found:
        if status not in STATUSES:
            guess = nearest(status, STATUSES)
            way_out = f"did you mean {guess}?" if guess else f"there are {', '.join(STATUSES)}"
            raise Problem(422, f"there is no status {status[:40]!r}", way_out)
    return found


def _type(text: str | None) -> str | None:
    if text is not None and text not in known():
        guess = nearest(text, tuple(known()))
        way_out = f"did you mean {guess}?" if guess else f"there are {', '.join(known())}"
        raise Problem(422, f"there is no taskType {text[:40]!r}", way_out)
    return text
