"""Tasks over HTTP: submitted in each form, told of, cancelled; what is wrong is said as the command says it."""

from __future__ import annotations

import json
import signal
import time

import psutil
import pytest
from dagster import DagsterInstance

from mloc_dagster.service.bodies import MAX_BULK_BYTES
from mloc_dagster.service.intake import LANES
from mloc_dagster.spec import SpecError, load_text
from mloc_dagster.spec.tree import MAX_BYTES
from tests.service.conftest import ECHO, Service
from tests.waiting import wait_for

YAML = {"Content-Type": "text/yaml"}
TASK = {
    "apiVersion": "mloc/v1",
    "metadata": {"name": "as-json", "owner": "bob"},
    "spec": {"taskType": "echo", "echo": 1},
}


def test_a_task_runs_to_success(service: Service, daemon: None) -> None:
    answer = service(
        "POST", "/api/v1/tasks?fresh=true", "submit", data=ECHO.format(name="hello", owner="al"), headers=YAML
    )
    told = answer.json()
    assert answer.status_code == 201 and answer.headers["Location"] == f"/api/v1/tasks/{told['id']}"
    assert told["status"] == "ACCEPTED" and told["run_id"] == told["id"] and told["warnings"] == []
    wait_for(lambda: service.status(told["id"]) in ("SUCCESS", "FAILURE"), "the task to end", 120)
    found = service("GET", f"/api/v1/tasks/{told['id']}").json()
    assert (found["status"], found["job"], found["task"]) == ("SUCCESS", told["job"], "hello") and found["ended"]
    result = json.loads((service.home.results / told["id"] / "echo" / "responses.json").read_text())
    assert result["result"]["echo"] == {"text": "one"}
    again = service("DELETE", f"/api/v1/tasks/{told['id']}", "submit")
    assert again.status_code == 409 and "SUCCESS already" in again.json()["detail"]


@pytest.mark.parametrize(
    "sent",
    [
        {
            "data": ECHO.format(name="form", owner="al"),
            "headers": {"Content-Type": "application/x-www-form-urlencoded"},
        },
        {"data": ECHO.format(name="x", owner="al"), "headers": {"Content-Type": "application/x-yaml; charset=utf-8"}},
        {"json": {"yaml": ECHO.format(name="in-json", owner="al")}},
        {"json": TASK},
        {"json": {**TASK, "metadata": {"name": "smile", "owner": "😀é"}}},
        {"files": {"file": ("../../../etc/passwd.yaml", "apiVersion: mloc/v1\nspec: {taskType: echo, echo: 1}\n")}},
    ],
)
def test_each_form_is_taken(service: Service, sent: dict) -> None:
    answer = service("POST", "/api/v1/tasks", "submit", **sent)
    assert answer.status_code == 201, answer.text
    told = answer.json()
    assert told["job"].replace("_", "").isalnum() and "/" not in told["task"] and ".." not in told["task"]
    wait_for(lambda: service.status(told["id"]) == "QUEUED", "the run to wait")
    assert (service.home.specs / f"{told['job']}.yaml").is_file()
    assert service("DELETE", f"/api/v1/tasks/{told['id']}").status_code == 202


def test_a_dry_run_stores_nothing(service: Service) -> None:
    before = len(list(service.home.specs.glob("*")))
    answer = service("POST", "/api/v1/tasks?dry_run=true", data=ECHO.format(name="dry", owner="dry"), headers=YAML)
    assert answer.status_code == 200 and answer.json()["stages"] == [{"name": "echo", "taskType": "echo"}]
    assert service("GET", "/api/v1/tasks?owner=dry").json()["tasks"] == []
    assert len(list(service.home.specs.glob("*"))) == before


def test_faults_are_those_of_the_command(service: Service) -> None:
    text = "apiVersion: mloc/v1\nmetadata: {nam: x}\nspec: {taskType: ecko, echo: 1}\n"
    with pytest.raises(SpecError) as wrong:
        load_text(text, file="<body>")
    answer = service("POST", "/api/v1/tasks", data=text, headers=YAML)
    assert answer.status_code == 422 and answer.headers["Content-Type"] == "application/problem+json"
    told = answer.json()["faults"]
    assert [fault["text"] for fault in told] == [str(fault) for fault in wrong.value.faults]
    assert (told[0]["line"], told[0]["path"], told[0]["hint"]) == (2, "metadata.nam", "did you mean name?")


@pytest.mark.parametrize(
    ("sent", "status", "detail"),
    [
        ({"data": "a: [1, {", "headers": YAML}, 400, "1 fault"),
        ({"data": b"\xff\xfe", "headers": YAML}, 400, "not UTF-8"),
        ({"data": "", "headers": YAML}, 422, "1 fault"),
        ({"data": "{", "headers": {"Content-Type": "application/json"}}, 400, "not JSON"),
        ({"data": "[" * 100_000, "headers": {"Content-Type": "application/json"}}, 400, "not JSON"),
        ({"json": [TASK]}, 400, "no task"),
        ({"json": {"yaml": 3}}, 400, "yaml is no text"),
        ({"json": {"yaml": "a: 1", "dryRun": True}}, 400, "beside yaml there is dryRun"),
        ({"data": "x", "headers": {"Content-Type": "image/png"}}, 415, "image/png"),
        ({"data": "x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "cannot be read"),
        ({"data": "--x\r\nbad", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, 400, ""),
        ({"files": {"a": ("a", "x"), "b": ("b", "y")}}, 400, "2 tasks"),
        ({"json": {**TASK, "metadata": {"owner": "a\0b"}}}, 422, "1 fault"),
        ({"data": ECHO.format(name="x", owner='"\\ud800"'), "headers": YAML}, 400, "1 fault"),
        ({"data": "#" * (MAX_BYTES + 1), "headers": YAML}, 413, "larger than 1024 KiB"),
        ({"data": iter([b"#" * MAX_BYTES, b"##"]), "headers": YAML}, 413, "larger than 1024 KiB"),
        ({"files": {"a": ("a", "#" * (MAX_BYTES + (128 << 10)))}}, 413, "larger than"),
    ],
)
def test_bad_bodies_are_refused(service: Service, sent: dict, status: int, detail: str) -> None:
    answer = service("POST", "/api/v1/tasks", **sent)
    assert answer.status_code == status, answer.text
    assert detail in answer.json()["detail"] and answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("?dryrun=true", "did you mean dry_run?"),
        ("?dry_run=maybe", "true or false"),
        ("?priority=high", "whole number"),
        ("?priority=99999999999999999999999", "whole number"),
    ],
)
def test_bad_options_are_refused(service: Service, path: str, hint: str) -> None:
    answer = service("POST", f"/api/v1/tasks{path}", data=ECHO.format(name="x", owner="x"), headers=YAML)
    assert answer.status_code == 422 and hint in answer.json()["hint"]


@pytest.mark.parametrize(
    "query",
    [
        "status=DONE",
        "page=0",
        "page=x",
        "page_size=501",
        "page=101&page_size=100",
        "page=1&cursor=x",
        "user=x",
        "cursor=no-such",
        "cursor=x.y",
        "owner=%00",
    ],
)
def test_bad_lists_are_refused(service: Service, query: str) -> None:
    assert service("GET", f"/api/v1/tasks?{query}").status_code == 422


def test_very_many_documents_are_refused_at_once(service: Service) -> None:
    begun = time.monotonic()
    many = "---\na\n" * (2 << 20)
    answer = service("POST", "/api/v1/tasks/bulk", data=many, headers={"Content-Type": "text/yaml"})
    assert answer.status_code == 413 and "more than 1000 tasks" in answer.json()["detail"]
    assert time.monotonic() - begun < 20


def test_a_name_that_is_too_long_for_a_file_is_a_fault_of_the_task(service: Service) -> None:
    task: dict = {"apiVersion": "mloc/v1", "metadata": {"name": "t", "owner": "ann"}}
    task["spec"] = {"taskType": "agent", "agent": {"config_name": "a" * 300}, "data": {"items": ["x"]}}
    assert service("POST", "/api/v1/tasks", json=task).status_code == 422


def test_each_task_of_a_bulk_is_answered_for_itself(service: Service) -> None:
    good = ECHO.format(name="good", owner="many")
    body = f"%YAML 1.1\n---\n{good}---\n# nothing\n---\n{good.replace('owner', 'ownr')}...\n---\nkey: [\n"
    answer = service("POST", "/api/v1/tasks/bulk", data=body, headers=YAML)
    told = answer.json()
    assert answer.status_code == 207 and (told["accepted"], told["refused"]) == (1, 2)
    first, second, third = told["tasks"]
    assert first["code"] == 201 and second["status"] == 422 and third["status"] == 400
    assert second["faults"][0]["line"] == body[: body.index("ownr")].count("\n") + 1
    wait_for(lambda: service.status(first["id"]) == "QUEUED", "the run to wait")
    assert service("DELETE", f"/api/v1/tasks/{first['id']}").json()["status"] == "CANCELED"
    listed = service("POST", "/api/v1/tasks/bulk?dry_run=1", json=[TASK, {"yaml": good}, good])
    assert listed.status_code == 200 and [one["task"] for one in listed.json()["tasks"]] == ["as-json", "good", "good"]
    for sent, status in (
        ({"json": {"tasks": 3}}, 400), ({"json": [3]}, 400), ({"json": [{}] * 1001}, 413), ({"data": ""}, 400),
        ({"data": "#" * (MAX_BULK_BYTES + 1), "headers": YAML}, 413),
    ):  # fmt: skip
        assert service("POST", "/api/v1/tasks/bulk", **sent).status_code == status


def test_a_list_goes_on_by_pages_and_by_cursor(service: Service) -> None:
    numbers = [service.submit(f"list-{n}", owner="pages") for n in range(5)]
    wait_for(lambda: all(service.status(number) == "QUEUED" for number in numbers), "the runs to wait")
    created = [row["id"] for row in service("GET", "/api/v1/tasks?owner=pages").json()["tasks"]]
    assert sorted(created) == sorted(numbers)
    by_page, by_cursor, cursor = [], [], ""
    for page in (1, 2, 3):
        by_page += service("GET", f"/api/v1/tasks?owner=pages&page_size=2&page={page}").json()["tasks"]
        told = service("GET", f"/api/v1/tasks?owner=pages&page_size=2{cursor}").json()
        by_cursor += told["tasks"]
        cursor = f"&cursor={told['cursor']}"
    assert told["cursor"] is None
    assert [row["id"] for row in by_page] == [row["id"] for row in by_cursor] == created
    assert service("GET", "/api/v1/tasks?owner=pages&page=4&page_size=2").json()["tasks"] == []
    assert len(service("GET", "/api/v1/tasks?owner=pages&status=queued,started").json()["tasks"]) == 5
    assert service("GET", "/api/v1/tasks?owner=pages&status=failure").json()["tasks"] == []
    assert service("GET", "/api/v1/tasks?owner=pages&project=other").json()["tasks"] == []
    for number in numbers:
        assert service("DELETE", f"/api/v1/tasks/{number}").status_code == 202


def test_a_cursor_holds_while_tasks_go_to_dagster(service: Service) -> None:
    """Page after page of what is accepted, while feeders take it away: none is left out."""
    body = "---\n".join(ECHO.format(name=f"moving-{n}", owner="moving") for n in range(30))
    told = service("POST", "/api/v1/tasks/bulk", data=body, headers=YAML).json()["tasks"]
    seen, cursor = [], ""
    while cursor is not None:
        page = service("GET", f"/api/v1/tasks?owner=moving&page_size=4{cursor}").json()
        seen += [row["id"] for row in page["tasks"]]
        cursor = f"&cursor={page['cursor']}" if page["cursor"] else None
    assert set(seen) == {one["id"] for one in told}
    wait_for(lambda: all(service.status(one["id"]) == "QUEUED" for one in told), "all runs to wait", 90)
    for one in told:
        assert service("DELETE", f"/api/v1/tasks/{one['id']}").status_code == 202


def test_unknown_things_are_404(service: Service) -> None:
    for method, path in (
        ("GET", "/api/v1/tasks/no-such"), ("DELETE", "/api/v1/tasks/..%2f..%2fetc"), ("GET", "/api/v1/nothing"),
        ("GET", "/api/v1/tasks/%00"), ("GET", "/api/v1/%2e%2e/%2e%2e/etc/passwd"),
    ):  # fmt: skip
        answer = service(method, path)
        assert answer.status_code in (400, 404), (path, answer.text)
    refused = service("PUT", "/api/v1/tasks")
    assert refused.status_code == 405 and refused.headers["Allow"] == "GET, HEAD, POST"


def test_killed_feeders_make_each_run_once(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "---\n".join(ECHO.format(name=f"once-{n}", owner="once") for n in range(24))
    told = service("POST", "/api/v1/tasks/bulk?priority=7", data=body, headers=YAML).json()["tasks"]
    for _ in range(3):
        feeders = [child for child in service.process.children() if "mloc_dagster.service.feeder" in child.cmdline()]
        for feeder in feeders:
            try:
                feeder.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        wait_for(lambda: _feeders(service) == LANES, "new feeders", 30)
    wait_for(lambda: service("GET", "/readyz", None).ok, "the service", 30)
    wait_for(lambda: all(service.status(one["id"]) == "QUEUED" for one in told), "all runs to wait", 90)
    found = service("GET", "/api/v1/tasks?owner=once&page_size=100").json()["tasks"]
    assert sorted(row["id"] for row in found) == sorted(one["id"] for one in told)
    monkeypatch.setenv("DAGSTER_HOME", str(service.home.dagster))
    with DagsterInstance.get() as instance:
        for one in told:
            run = instance.get_run_by_id(one["id"])
            assert run and run.tags["dagster/priority"] == "7" and run.tags["mloc/submitted_by"] == "admin"
            queued = [e for e in instance.all_logs(run.run_id) if e.dagster_event and e.dagster_event.is_job_event]
            assert sum(e.dagster_event_type.value == "PIPELINE_ENQUEUED" for e in queued if e.dagster_event_type) == 1
            instance.delete_run(run.run_id)


def _feeders(service: Service) -> int:
    return sum(
        "mloc_dagster.service.feeder" in child.cmdline() for child in service.process.children() if _lives(child)
    )


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
