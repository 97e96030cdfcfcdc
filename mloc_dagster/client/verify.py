"""A self-check of a running service from outside, end to end, with nothing but its address and a token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import uuid4

from mloc_dagster.client.client import Client, Refused

_TASK = """\
apiVersion: mloc/v1
metadata: {{name: mloc-verify, owner: mloc-verify, project: mloc-verify}}
spec: {{taskType: echo, echo: {{text: "{word}"}}}}
"""
_BAD = "apiVersion: mloc/v1\nspec: {taskType: ecko}\n"


@dataclass(frozen=True)
class Check:
    """One check: what was looked at, what was wrong (empty when nothing), how long it took in seconds."""

    name: str
    wrong: str
    told: str
    seconds: float


class Failed(Exception):
    """An answer that came and is not what it should be."""


def verify(client: Client, address: str, seconds: float = 300.0) -> Iterator[Check]:
    """Yield checks as they are made; what needs a task that could not be submitted is left out.

    The task is an echo, owned by `mloc-verify`; it stays in the list of tasks. `seconds` is how long it may take.
    """
    word = uuid4().hex
    task_ids: list[str] = []
    yield _checked("health", client.ready)
    yield _checked("a request without a token is refused", lambda: _without_token(address))
    yield _checked("a bad file is refused with its faults", lambda: _bad_file(client))
    yield _checked("submit a task", lambda: _submit(client, word, task_ids))
    for task_id in task_ids:
        yield _checked("the task succeeds", lambda task_id=task_id: _wait(client, task_id, seconds))
        yield _checked("its log is there", lambda task_id=task_id: _log(client, task_id))
        yield _checked("its result is what it should be", lambda task_id=task_id: _result(client, task_id, word))
        yield _checked("its usage is counted", lambda: _stats(client, seconds))
    yield _checked("metrics", lambda: _metrics(client))
    yield _checked("workers", lambda: f"{len(client.workers())} workers")


def _checked(name: str, look: Callable[[], str]) -> Check:
    begun = time.monotonic()
    try:
        told, wrong = look(), ""
    except (Failed, Refused, TimeoutError) as error:
        told, wrong = "", str(error)
    except OSError as error:
        told, wrong = "", f"nobody answers: {error}"
    except (KeyError, TypeError, ValueError) as error:
        told, wrong = "", f"an answer of another shape: {type(error).__name__}: {error}"
    return Check(name, wrong, told, time.monotonic() - begun)


def _without_token(address: str) -> str:
    try:
        next(Client(address).tasks(), None)
    except Refused as error:
        if error.status == 401:
            return "401"
        raise
    raise Failed("anyone may list tasks; the service should ask for a token")


def _bad_file(client: Client) -> str:
    try:
        client.submit(_BAD)
    except Refused as error:
        faults = error.problem.get("faults", [])
        if error.status == 422 and any("ecko" in fault["text"] for fault in faults):
            return "422"
        raise
    raise Failed("a file with an unknown taskType was accepted")


def _submit(client: Client, word: str, task_ids: list[str]) -> str:
    task_ids.append(client.submit(_TASK.format(word=word), fresh=True)["task_id"])
    return task_ids[0]


def _wait(client: Client, task_id: str, seconds: float) -> str:
    found = client.wait(task_id, seconds=seconds)
    if found["status"] != "SUCCESS":
        raise Failed(f"{task_id} ended as {found['status']}; see: mloc show {task_id[:8]}")
    return found["status"]


def _log(client: Client, task_id: str) -> str:
    lines = sum(1 for _ in client.logs(task_id, follow=True))
    return f"{lines} lines"


def _result(client: Client, task_id: str, word: str) -> str:
    result = client.result(task_id)
    if word not in str(result):
        raise Failed(f"the result of {task_id} does not hold what it was to echo")
    return "echoed"


def _stats(client: Client, seconds: float) -> str:
    until = time.monotonic() + min(seconds, 60.0)
    while not (done := client.stats(user="mloc-verify")["total_tasks_completed"]):
        if time.monotonic() > until:
            raise Failed("the task is over and does not count as completed; see web.log")
        time.sleep(0.5)
    return f"{done} completed"


def _metrics(client: Client) -> str:
    names = {line.split()[2] for line in client.metrics().splitlines() if line.startswith("# TYPE ")}
    missing = {"mloc_tasks", "mloc_queue_depth", "mloc_tasks_ended_total"} - names - {f"{name}_total" for name in names}
    if missing:
        raise Failed(f"there is no {', '.join(sorted(missing))}")
    return f"{len(names)} metrics"
