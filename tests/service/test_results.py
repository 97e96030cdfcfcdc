"""Results over HTTP: down with ranges, up block by block; names that lead elsewhere are refused."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import http.client
import json
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from starlette.requests import Request

from mloc_dagster.service import uploads
from mloc_dagster.service.problems import Problem
from tests.service.conftest import Service
from tests.waiting import wait_for

BLOCK = os.urandom(1 << 20)


def envelope(number: str, stage: str = "train", **more: object) -> dict[str, object]:
    told = {"task_id": f"{number}/{stage}", "stage": stage, "worker": "w", "metadata": {}, "received_at": "now"}
    return {**told, "result": {"ok": True}, **more}


def receive(service: Service, number: str | None = None, stage: str = "train") -> str:
    number = number or f"r-{uuid4().hex}"
    answer = service("POST", "/api/v1/results", "submit", json=envelope(number, stage))
    assert answer.status_code == 201, answer.text
    return number


def test_a_result_goes_up_and_comes_down(service: Service) -> None:
    number = receive(service)
    again = service("POST", "/api/v1/results", "submit", json=envelope(number))
    other = service("POST", "/api/v1/results", "submit", json=envelope(number, result={"ok": False}))
    assert (again.status_code, other.status_code) == (200, 409) and "another result" in other.json()["detail"]
    found = service("GET", f"/api/v1/results/{number}", "read").json()
    assert found["stages"]["train"]["result"] == {"ok": True}
    assert service("GET", f"/api/v1/results/{number}/train", "read").json()["worker"] == "w"
    listed = service("GET", f"/api/v1/results?cursor={number[:-1]}&page_size=1", "read").json()["results"]
    assert [(one["id"], one["stages"]) for one in listed] == [(number, ["train"])]


def test_a_file_goes_up_as_deliveries_send_it_and_comes_down_in_parts(service: Service) -> None:
    number, data = receive(service), BLOCK[:300_000]
    sent = service("POST", f"/api/v1/results/{number}/train/files", "submit", files={"file": ("m.tar.gz", data)})
    digest = hashlib.sha256(data).hexdigest()
    assert sent.status_code == 201 and sent.json()["sha256"] == digest, sent.text
    same = service("POST", f"/api/v1/results/{number}/files", "submit", files={"file": ("m.tar.gz", data)})
    other = service("POST", f"/api/v1/results/{number}/files", "submit", files={"file": ("m.tar.gz", b"x")})
    assert (same.status_code, other.status_code) == (200, 409)
    manifest = json.loads((service.home.results / number / "train" / "manifest.json").read_text())
    assert digest in [entry.get("sha256") for entry in manifest["entries"]]
    names = {one["name"]: one for one in service("GET", f"/api/v1/results/{number}/files").json()["files"]}
    assert names["train/artifacts/m.tar.gz"]["sha256"] == digest
    path = f"/api/v1/results/{number}/files/train/artifacts/m.tar.gz"
    whole = service("GET", path, "read")
    assert whole.content == data and whole.headers["X-Content-Type-Options"] == "nosniff"
    assert whole.headers["Repr-Digest"] == f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:"
    part = service("GET", path, "read", headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, data[100:200])
    beyond = service("GET", path, "read", headers={"Range": "bytes=400000-"})
    wrong = service("GET", path, "read", headers={"Range": "lines=1-2"})
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, "bytes */300000")
    assert (wrong.status_code, wrong.headers["Content-Type"]) == (400, "application/problem+json")
    assert "300000 bytes" in beyond.json()["detail"] and "lines=1-2" in wrong.json()["detail"]


def test_a_digest_is_checked_and_nothing_is_left_of_what_is_refused(service: Service) -> None:
    number = receive(service)
    right = base64.b64encode(hashlib.sha256(b"data").digest()).decode()
    path = f"/api/v1/results/{number}/files/a.bin"
    wrong = service("PUT", path, "submit", data=b"other", headers={"Repr-Digest": f"sha-256=:{right}:"})
    none = service("PUT", path, "submit", data=b"data", headers={"Repr-Digest": "md5=:x:"})
    assert (wrong.status_code, none.status_code) == (400, 400) and "SHA-256" in wrong.json()["detail"]
    assert list((service.home.results / number / "train" / "artifacts").iterdir()) == []
    fine = service("PUT", path, "submit", data=b"data", headers={"Content-Digest": f"sha-256=:{right}:"})
    assert fine.status_code == 201 and service("PUT", path, "read", data=b"data").status_code == 403


@pytest.mark.parametrize(
    "name", ["../x", "..%2Fx", "%2e%2e/%2e%2e/token", "train/../../token", ".hidden", "a%00b", "%2Fetc%2Fpasswd"]
)
def test_names_that_lead_elsewhere_open_nothing(service: Service, name: str) -> None:
    number = receive(service)
    address = urlsplit(service.address)
    for method in ("GET", "PUT"):
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
        headers = {"Authorization": f"Bearer {service.tokens['admin']}"}
        connection.request(method, f"/api/v1/results/{number}/files/{name}", b"x" if method == "PUT" else None, headers)
        assert connection.getresponse().status in (400, 404, 405)
    assert not (service.home.results / number / "x").exists() and not (service.home.results / "x").exists()


def test_a_link_that_leaves_the_results_is_no_file(service: Service) -> None:
    number = receive(service)
    (service.home.results / number / "train" / "token").symlink_to(service.home.root / "token")
    assert service("GET", f"/api/v1/results/{number}/files/train/token").status_code == 404


@pytest.mark.parametrize(
    ("sent", "detail"),
    [
        ({"files": {"file": ("../x", b"x")}}, "folders in it"),
        ({"files": {"file": ("a\\b", b"x")}}, "folders in it"),
        ({"files": [("a", ("a", b"x")), ("b", ("b", b"y"))]}, "more than one file"),
        ({"files": {"file": (None, b"x")}}, "is no file"),
        ({"data": b"--b\r\nnonsense", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, "form"),
        ({"data": b"", "headers": {"Content-Type": "multipart/form-data"}}, "no boundary"),
        ({"data": b"x", "headers": {"Content-Type": "text/plain"}}, "no form"),
    ],
)
def test_forms_that_are_none(service: Service, sent: dict, detail: str) -> None:
    number = receive(service)
    answer = service("POST", f"/api/v1/results/{number}/files", "submit", **sent)
    assert answer.status_code == 400 and detail in answer.json()["detail"], answer.text
    artifacts = service.home.results / number / "train" / "artifacts"
    assert not artifacts.exists() or list(artifacts.iterdir()) == []


def _deep(levels: int) -> str:
    return json.dumps(envelope("a", result={"x": 0})).replace("0}", "[" * levels + "]" * levels + "}")


def test_what_follows_a_form_counts_too(service: Service) -> None:
    number = receive(service)
    body = b"--b\r\nContent-Disposition: form-data; name=file; filename=x\r\n\r\nx\r\n--b--\r\n"
    folder = service.home.results / number / "train"

    async def receives() -> None:
        async def message() -> dict[str, object]:
            return {"type": "http.request", "body": next(parts, b""), "more_body": True}

        parts = iter([body, *[BLOCK] * 3])
        kind = [(b"content-type", b"multipart/form-data; boundary=b")]
        await uploads.receive_form(Request({"type": "http", "method": "POST", "headers": kind}, message), folder)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Problem, match="larger than") as refused:
        patch.setattr(uploads, "most_bytes", lambda: 1 << 20)
        asyncio.run(receives())
    assert refused.value.status == 413 and os.listdir(folder / "artifacts") == []


def test_a_client_that_trickles_is_not_waited_for(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "_SILENT_SECONDS", 0.2)

    async def receives() -> None:
        async def message() -> dict[str, object]:
            await asyncio.sleep(0.1)
            return {"type": "http.request", "body": b"x", "more_body": True}

        request = Request({"type": "http", "method": "PUT", "headers": []}, message)
        await uploads.receive_raw(request, service.home.results / number / "train", "slow.bin")

    number = receive(service)
    with pytest.raises(Problem, match="bytes came in") as refused:
        asyncio.run(receives())
    assert refused.value.status == 408


def test_what_cannot_be_taken_in(service: Service) -> None:
    def refused(status: int, detail: str, **sent: object) -> None:
        answer = service("POST", "/api/v1/results", "submit", **sent)
        assert answer.status_code == status and detail in answer.json()["detail"], answer.text

    refused(422, "stage", json={"task_id": "a"})
    refused(400, "no `<id>/<stage>`", json=envelope("..", "x"))
    refused(400, "no `<id>/<stage>`", json=envelope("a", "../../b"))
    refused(400, "no `<id>/<stage>`", json=envelope("far 1"))
    refused(422, "100 deep", data=_deep(300), headers={"Content-Type": "application/json"})
    for number in ("NaN", "-Infinity", "1e999"):
        body = json.dumps(envelope("a", result={"x": 0})).replace("0}", f"{number}}}")
        refused(400, "no number", data=body, headers={"Content-Type": "application/json"})
    refused(400, "not JSON", data=b'{"task_id": "\\ud800"}', headers={"Content-Type": "application/json"})
    refused(400, "not JSON", data=b"[" * 100_000, headers={"Content-Type": "application/json"})
    refused(415, "text/yaml", data=b"a: 1", headers={"Content-Type": "text/yaml"})
    number = service.submit("unfinished")
    wait_for(lambda: service.status(number) == "QUEUED", "the run")
    refused(409, "task of this service", json=envelope(number))
    first = service.home.results / number / "first"
    first.mkdir(parents=True)
    (first / "responses.json").write_text(json.dumps(envelope(number, "first")))
    refused(409, "task of this service", json=envelope(number, "second"))  # its first stage is done
    assert service("POST", "/api/v1/results", "submit", json=envelope(number, "first")).status_code == 200
    service("DELETE", f"/api/v1/tasks/{number}")


@pytest.mark.parametrize(
    ("form", "blocks"),
    [(False, 192), (True, 192), pytest.param(False, 1024, marks=pytest.mark.slow),
     pytest.param(True, 1024, marks=pytest.mark.slow)],
    ids=["raw", "form", "raw-gib", "form-gib"],
)  # fmt: skip
def test_a_large_file_needs_little_memory(service: Service, form: bool, blocks: int) -> None:
    number = receive(service)
    body = (b"--b\r\nContent-Disposition: form-data; name=file; filename=big\r\n\r\n", b"\r\n--b--\r\n")
    kind = {"Content-Type": "multipart/form-data; boundary=b"} if form else {}
    before, most = service.process.memory_info().rss, 0

    def sent() -> Iterator[bytes]:
        nonlocal most
        yield body[0] if form else b""
        for _ in range(blocks):
            yield BLOCK
            most = max(most, service.process.memory_info().rss)
        yield body[1] if form else b""

    path = f"/api/v1/results/{number}/files" + ("" if form else "/big")
    answer = service("POST" if form else "PUT", path, "submit", data=filter(None, sent()), headers=kind)
    assert answer.status_code == 201 and answer.json()["size"] == blocks << 20, answer.text
    assert most - before < 64 << 20
    (service.home.results / answer.json()["id"] / answer.json()["name"]).unlink()


def test_another_file_of_a_name_is_refused_before_it_comes(service: Service) -> None:
    """By its size, or by the digest that is announced: of the body only the head is sent."""
    number, content = receive(service), b"x" * (2 << 20)
    path = f"/api/v1/results/{number}/files"
    assert service("POST", path, "submit", files={"file": ("a.bin", content)}).status_code == 201
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'
    other = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    same_size = len(content) + len(head) + 9
    for length, more in ((50 << 20, ""), (same_size, f"Repr-Digest: sha-256=:{other}:\r\n")):
        host, port = service.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            lines = f"POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {service.tokens['submit']}\r\n"
            lines += f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {length}\r\n{more}\r\n"
            connection.sendall(lines.encode() + head + content[: 3 << 19])
            assert b" 409 " in connection.recv(4096).split(b"\r\n")[0]
    assert service("POST", path, "submit", files={"file": ("a.bin", content)}).status_code == 200


def test_a_hundred_uploads_that_are_none_leave_nothing(service: Service) -> None:
    """Names that lead out, forms that are broken in every place: refused as a problem, nothing written anywhere."""
    number, draw = receive(service), random.Random(7)
    whole = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f.bin"\r\n\r\nDATA\r\n--b--\r\n'
    names = ["../x", "..", "/etc/x", "a/../../x", "..\\x", ".hidden", "a\0b", "", "x" * 300, "..%2fx", "~/x"]
    bodies = [whole.replace(b"f.bin", name.encode()) for name in names]
    while len(bodies) < 100:
        cut, changed = draw.randrange(1, len(whole) - 8), bytearray(whole)
        changed[draw.randrange(60)] = draw.randrange(256)
        bodies.append(whole[:cut] if len(bodies) % 2 else bytes(changed[: len(whole) - 8]))
    before = _tree(service.home.root.parent)
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    for body in bodies:
        answer = service("POST", f"/api/v1/results/{number}/files", "submit", data=body, headers=kind)
        assert 400 <= answer.status_code < 500, (body, answer.text)
        assert answer.headers["Content-Type"] == "application/problem+json" and answer.json()["detail"]
    assert _tree(service.home.root.parent) == before


def _tree(root: Path) -> set[str]:
    """Files below a folder that uploads could have made."""
    ours = ("results", "inbox", "specs")
    kept = [path for path in root.rglob("*") if path.is_file() and "dagster" not in path.relative_to(root).parts]
    return {str(path.relative_to(root)) for path in kept if path.suffix != ".log" or path.parent.name in ours}
