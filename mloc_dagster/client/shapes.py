"""The answers of the service under `/api/v1`; times in seconds since the epoch, sizes in bytes.

The service makes them, its OpenAPI document describes them, and the client returns them.
"""

from __future__ import annotations

from typing import Any, NotRequired

from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

Json = Any


class Fault(TypedDict):
    """What is wrong with a task file, or worth a warning; `text` is the line that the command prints."""

    file: str
    line: int
    column: int
    path: str
    reason: str
    value: str
    hint: str
    text: str


class ProblemDetails(TypedDict):
    """Why a request was not served (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    hint: NotRequired[str]
    faults: NotRequired[list[Fault]]
    missing_scope: NotRequired[str]


class Task(TypedDict):
    """A task. `id` and `run_id` name this run of it; `task_id` stays the same when it is replayed."""

    id: str
    run_id: str
    task_id: str
    job: str
    task: str
    owner: str | None
    project: str | None
    status: str
    created: float
    started: float | None
    ended: float | None
    waiting: NotRequired[str]
    error: NotRequired[str]
    cause: NotRequired[str | None]
    replay_of: NotRequired[str]


class Submitted(Task):
    """A task that was accepted, or with `dry_run` one that would be."""

    ok: bool
    warnings: list[Fault]
    budgets: list[str]


class Rehearsed(TypedDict):
    """What `dry_run` tells."""

    dry_run: bool
    task: str
    owner: str
    project: str
    job: str
    stages: list[dict[str, str]]
    warnings: list[Fault]


class Bulk(TypedDict):
    """Many tasks, each answered for itself: accepted ones bear `code` 201, others are problems."""

    accepted: int
    refused: int
    tasks: list[dict[str, Json]]


class TaskPage(TypedDict):
    """Tasks, newest first; `cursor` leads on when there are more."""

    tasks: list[Task]
    page: int | None
    page_size: int
    cursor: str | None


class ResultEntry(TypedDict):
    """A result in the list: its stages, and when the last of them changed."""

    id: str
    stages: list[str]
    changed: float


class ResultPage(TypedDict):
    """Results by id; `cursor` leads on when there are more."""

    results: list[ResultEntry]
    cursor: str | None


class Envelope(TypedDict):
    """What every stage publishes."""

    task_id: str
    stage: str
    worker: str
    metadata: dict[str, Json]
    received_at: str
    result: dict[str, Json]


class Result(TypedDict):
    """The results of a task, by stage."""

    id: str
    stages: dict[str, Envelope]


class File(TypedDict):
    """A file of a result; `sha256` where it is known."""

    name: str
    size: int
    modified: float
    sha256: NotRequired[str]


class Files(TypedDict):
    """The files of a result; `complete` is false when there are more than are told."""

    id: str
    files: list[File]
    complete: bool


class Stored(TypedDict):
    """What was stored of a result, or was there already."""

    ok: bool
    id: str
    name: str
    size: int
    sha256: str


class Amount(TypedDict):
    """So much of something, and how much of it is held."""

    total: float
    held: float


class DeviceRow(TypedDict):
    """One GPU; `held` is a part of 1."""

    index: int
    name: str
    memory: int
    held: float


class LeaseRow(TypedDict):
    """What a run holds of a worker; `devices` are parts of 1 by index."""

    run_id: str
    owner: str
    cpu: float
    memory: int
    devices: dict[str, float]
    since: float


class Worker(TypedDict):
    """A worker; `silent` when nothing was heard of it for a minute."""

    name: str
    host: str
    state: str
    silent: bool
    load: float
    cpu: Amount
    memory: Amount
    devices: list[DeviceRow]
    leases: list[LeaseRow]


class Workers(TypedDict):
    """All workers."""

    workers: list[Worker]


class Entered(TypedDict):
    """A machine that reaches out was entered; `away_seconds`: so long it may be out of reach and keep its stages."""

    name: str
    away_seconds: float


class Assignment(TypedDict):
    """An attempt for a machine to begin; `memory` in bytes (0: no bound), `grace` in seconds."""

    attempt: str
    key: str
    memory: int
    devices: list[int]
    grace: float
    environment: dict[str, str]


class StopRequest(TypedDict):
    """An attempt to end."""

    attempt: str
    kill: bool


class Work(TypedDict):
    """What a machine is to do; what is `gone` was given up, and nothing of it is wanted any more."""

    begin: list[Assignment]
    stop: list[StopRequest]
    gone: list[str]


class Arrival(TypedDict):
    """How many bytes have arrived."""

    arrived: int


class DeadLetter(TypedDict):
    """A run that failed for good and that nobody has done again."""

    run_id: str
    task: str
    owner: str
    stage: str
    cause: str
    reason: str
    failed_at: float
    attempts: int


class DeadLetters(TypedDict):
    """Dead letters, newest first."""

    dead_letters: list[DeadLetter]


class Cost(TypedDict):
    """By the prices of now; devices without a price are named."""

    amount: float
    currency: str
    unpriced: list[str]


class Tokens(TypedDict):
    """Tokens that results tell of."""

    prompt: int
    completion: int


class Stats(TypedDict):
    """Usage of runs that are over; breakdowns are GPU-hours. `as_of`: the latest change that is counted."""

    query_parameters: dict[str, str]
    total_gpu_hours: float
    total_tasks_completed: int
    breakdown_by_gpu: dict[str, float]
    by_user: dict[str, float]
    by_project: dict[str, float]
    total_cpu_hours: float
    total_queue_hours: float
    total_tasks_failed: int
    total_tasks_canceled: int
    tokens: Tokens
    cost: Cost
    as_of: str | None


class UsageRows(TypedDict):
    """One row for each owner, project, GPU, day, task or stage."""

    query_parameters: dict[str, str]
    by: str
    rows: list[dict[str, Json]]
