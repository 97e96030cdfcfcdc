"""Logs, events, replay, workers, dead letters, usage, metrics, filters of the list; and the client over all of it."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from dagster import DagsterRunStatus
from prometheus_client.parser import text_string_to_metric_families

from mloc_dagster.client import Client, Refused
from mloc_dagster.definitions.logs import TaskLog
from mloc_dagster.service import streams
from mloc_dagster.service.backend import Backend
from mloc_dagster.service.streams import Streams
from tests.service.conftest import ECHO, Service
from tests.waiting import wait_for

BROKEN = (
    "apiVersion: mloc/v1\nmetadata: {name: broken, owner: eve}\n"
    "spec: {taskType: echo, echo: {text: '${NO_SUCH_SECRET_OF_OURS}'}}\n"
)


@pytest.fixture
def client(service: Service) -> Client:
    """A client that may submit."""
    return Client(service.address, service.tokens["submit"])


def test_a_task_from_its_submission_to_its_files(
    service: Service, client: Client, daemon: None, tmp_path: Path
) -> None:
    since = time.time() - 1
    assert client.check(ECHO.format(name="way", owner="uma"))["dry_run"]
    number = client.submit(ECHO.format(name="way", owner="uma"), fresh=True)["id"]
    told = list(client.logs(number, follow=True))
    assert any("PIPELINE_SUCCESS" in line for line in told) and client.wait(number)["status"] == "SUCCESS"
    assert client.result(number)["stages"]["echo"]["result"]["echo"] == {"text": "one"}
    name = "echo/responses.json"
    assert name in [file["name"] for file in client.files(number)["files"]]
    got = client.download(number, name, tmp_path / "r.json")
    assert json.loads(got.read_text()) == client.result(number)["stages"]["echo"]
    found = [task["id"] for task in client.tasks(owner="uma", task_type="echo", since=since)]
    assert found == [number] and list(client.tasks(owner="uma", since=time.time() + 60)) == []
    assert list(client.tasks(owner="uma", task_type="sft")) == []
    (worker,) = client.workers()
    assert worker["cpu"]["total"] > 0 and service("GET", "/workers").json()["workers"][0]["name"] == worker["name"]

    def counted() -> bool:
        return client.stats(user="uma")["total_tasks_completed"] == 1

    wait_for(counted, "usage", 30)
    stats = client.stats(user="uma", start_date="2024-01-01")
    assert stats["query_parameters"] == {"user": "uma", "start_date": "2024-01-01"} and stats["total_cpu_hours"] > 0
    rows = service("GET", "/api/v1/usage?by=stage&user=uma", "read").json()["rows"]
    assert [row["stage"] for row in rows if row["stage"] != "-"] == ["way/echo"]
    with pytest.raises(Refused, match="SUCCESS; only what failed") as refused:
        client.replay(number)
    assert refused.value.status == 409


def test_events_are_told_as_they_come_and_go_on_after_the_last_one(service: Service, daemon: None) -> None:
    number = service.submit("events", "vic")
    answer = service("GET", f"/api/v1/tasks/{number}/events", "read", stream=True)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    text = answer.text
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    kinds = [line.removeprefix("event: ") for block in blocks for line in block if line.startswith("event: ")]
    assert kinds[-1] == "end" and {"STEP_START", "STEP_SUCCESS", "RUN_SUCCESS"} <= set(kinds)
    last = [line.removeprefix("id: ") for block in blocks for line in block if line.startswith("id: ")][-1]
    path = f"/api/v1/tasks/{number}/events"
    again = service("GET", path, "read", headers={"Last-Event-ID": last}).text
    assert "event: end" in again and "STEP_START" not in again
    assert service("GET", path, "read", headers={"Last-Event-ID": "nonsense"}).status_code == 422
    assert service("GET", "/api/v1/tasks/nonsense/events").status_code == 404


def test_what_failed_is_told_and_done_again(service: Service, client: Client, daemon: None) -> None:
    number = client.submit(BROKEN)["id"]
    assert client.wait(number, seconds=120)["status"] == "FAILURE"
    assert client.task(number)["cause"] == "user"
    letters = {letter["run_id"]: letter for letter in client.dead_letters(cause="user")}
    assert letters[number]["owner"] == "eve" and letters[number]["reason"]
    again = client.replay(number)
    assert again["replay_of"] == number and again["task_id"] == number
    assert number not in [letter["run_id"] for letter in client.dead_letters()]
    with pytest.raises(Refused, match=r"replayed already|being replayed"):
        client.replay(number)
    client.wait(again["id"])


def test_a_worker_is_taken_out_of_service_by_an_admin_alone(service: Service, client: Client, daemon: None) -> None:
    wait_for(lambda: bool(client.workers()), "the worker")
    name = client.workers()[0]["name"]
    with pytest.raises(Refused, match="needs admin"):
        client.set_worker(name, "cordon")
    admin = Client(service.address, service.tokens["admin"])
    assert admin.set_worker(name, "drain")["state"] == "draining"
    assert admin.set_worker(name, "uncordon")["state"] == "ready"
    with pytest.raises(Refused, match=f"there are {name}"):
        admin.set_worker("nobody", "cordon")


def test_metrics_are_those_of_prometheus(service: Service) -> None:
    answer = service("GET", "/metrics", "read")
    assert answer.status_code == 200 and answer.headers["Content-Type"].startswith("text/plain")
    found = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert {
        "mloc_tasks", "mloc_queue_depth", "mloc_queue_wait_seconds", "mloc_run_seconds", "mloc_step_retries",
        "mloc_slo", "mloc_devices_held", "mloc_engines", "mloc_tasks_ended", "mloc_gpu_seconds",
    } <= set(found)  # fmt: skip
    before = next(s.value for s in found["mloc_tasks"].samples if s.labels == {"status": "QUEUED"})
    number = service.submit("waits")
    day = time.strftime("%Y%m%d", time.gmtime(time.time() - 86_400))
    listed = service("GET", f"/api/v1/tasks?since={day}&page_size=500", "read").json()["tasks"]
    assert number in [task["id"] for task in listed]
    later = time.strftime("%Y%m%d", time.gmtime(time.time() + 2 * 86_400))
    assert service("GET", f"/api/v1/tasks?since={later}", "read").json()["tasks"] == []
    wait_for(lambda: service.status(number) == "QUEUED", "the run")
    wait_for(lambda: f'mloc_tasks{{status="QUEUED"}} {before + 1}' in service("GET", "/metrics", "read").text, "it")
    service("DELETE", f"/api/v1/tasks/{number}")
    assert service("GET", "/metrics", None).status_code == 401


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("/tasks?taskType=sfd", "no taskType 'sfd'"),
        ("/tasks?since=yesterday", "since is 'yesterday'"),
        ("/tasks?since=1e300", "since is"),
        ("/stats?start_date=2024-13-01", "start_date is"),
        ("/stats?start_date=2024-02-01&end_date=2024-01-01", "is before"),
        ("/stats?owner=x", "no query parameter 'owner'"),
        ("/usage?by=weekday", "by is 'weekday'"),
        ("/dead_letters?cause=bad", "cause is 'bad'"),
        ("/dead_letters?limit=0", "limit is '0'"),
        ("/tasks?owner=", "owner is empty"),
        ("/tasks?owner=ann&owner=bob", "'owner' is given 2 times"),
        ("/stats?user=", "user is empty"),
    ],
)
def test_what_cannot_be_asked(service: Service, path: str, detail: str) -> None:
    answer = service("GET", f"/api/v1{path}", "read")
    assert answer.status_code == 422 and detail in answer.json()["detail"] and answer.json()["hint"]


def test_logs_of_a_stage_that_there_is_not(service: Service) -> None:
    number = service.submit("typo")
    told = [service("GET", f"/api/v1/tasks/{number}/logs?stage={stage}", "read") for stage in ("ecko", "echo")]
    assert [one.status_code for one in told] == [422, 200] and "did you mean echo" in told[0].json()["hint"]
    wait_for(lambda: service.status(number) == "QUEUED", "the run")
    assert service("GET", f"/api/v1/tasks/{number}/logs?stage=ecko", "read").status_code == 422
    assert service("GET", f"/api/v1/tasks/{number}/logs?stage=echo", "read").status_code == 200
    service("DELETE", f"/api/v1/tasks/{number}")


def test_streams_are_bounded_by_token_and_leave_other_requests_alone(service: Service, client: Client) -> None:
    number = client.submit(ECHO.format(name="followed", owner="vic"))["id"]
    wait_for(lambda: service.status(number) == "QUEUED", "the run")
    path, open_now = f"/api/v1/tasks/{number}/logs?follow=true", []
    try:
        for _ in range(32):
            answer = service("GET", path, "read", stream=True)
            assert answer.status_code == 200
            open_now.append(answer)
        more = service("GET", path, "read", stream=True)
        assert more.status_code == 503 and "for the token 'read'" in more.json()["detail"]
        with service("GET", path, "submit", stream=True) as other:
            assert other.status_code == 200
    finally:
        for answer in open_now:
            answer.close()
        client.cancel(number)


def test_a_silent_log_says_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_SIGN_SECONDS", 0.0)
    monkeypatch.setattr(streams, "_LOOK_SECONDS", 0.01)

    async def look(work: Callable[[], object]) -> object:
        return work()

    states = iter(["QUEUED", "QUEUED", "SUCCESS"])
    instance = SimpleNamespace(get_run_by_id=lambda _: SimpleNamespace(status=SimpleNamespace(value=next(states))))
    log = SimpleNamespace(new=lambda last: iter(["the end"] if last else []))

    async def told() -> list[bytes]:
        backend = cast(Backend, SimpleNamespace(instance=instance, look=look))
        return [part async for part in Streams(backend)._lines("x", cast(TaskLog, log), True, "read")]

    assert asyncio.run(told()) == [b"\n", b"\n", b"the end\n"]


def test_a_task_that_moves_to_dagster_between_two_looks_is_not_deleted() -> None:
    looks = iter([None, SimpleNamespace(status=DagsterRunStatus.QUEUED)])
    instance = SimpleNamespace(get_run_by_id=lambda _: next(looks))
    backend = SimpleNamespace(instance=instance, intake=SimpleNamespace(get=lambda _: None))
    assert Streams(cast(Backend, backend))._status("x") == "QUEUED"


def test_budgets_are_kept(service: Service, client: Client) -> None:
    settings = service.home.root / "usage.yaml"
    settings.write_text("budgets: [{owner: poor, cpu_hours: 0, action: refuse}, {owner: warned, cpu_hours: 0}]\n")
    try:
        with pytest.raises(Refused, match="owner poor has used 0 of 0 core-hours this month") as refused:
            client.submit(ECHO.format(name="x", owner="poor"))
        assert refused.value.status == 403 and "usage.yaml" in str(refused.value)
        told = client.submit_all([ECHO.format(name="x", owner=owner) for owner in ("poor", "warned")])
        assert (told["accepted"], told["refused"]) == (1, 1) and "warned has used" in told["tasks"][1]["budgets"][0]
        client.cancel(told["tasks"][1]["id"])
        settings.write_text("budgets: [{owner: poor}]\n")
        with pytest.raises(Refused, match="bounds nothing"):
            client.submit(ECHO.format(name="x", owner="rich"))
    finally:
        settings.unlink()


def test_the_client_says_what_is_wrong(service: Service, client: Client) -> None:
    with pytest.raises(Refused, match="spec") as refused:
        client.submit("apiVersion: mloc/v1\nspec: {taskType: nonsense}\n")
    assert refused.value.problem["faults"][0]["line"] == 2
    with pytest.raises(Refused, match="a token is needed"):
        next(iter(Client(service.address).tasks()))
    with pytest.raises(ValueError, match="no address"):
        Client("localhost:3000")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(OSError):
        Client(f"http://127.0.0.1:{port}").task("x")
