"""What a machine's token opens, and what it does not; parts that come twice, late or damaged."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import requests
from typer.testing import CliRunner

from executors.remote.document import State
from executors.remote.store import Store, StoreError
from executors.remote.through import ServiceFiles
from mloc_dagster import __version__
from mloc_dagster.cli.app import app
from mloc_dagster.client import Refused
from mloc_dagster.client.outbound import WorkerClient
from mloc_dagster.placement.pull.desk import Desk, End, PullOrder
from mloc_dagster.service.tokens import Tokens, write_private
from tests.service.conftest import Service

INSTANCE = "0123456789abcdef" * 2


def entry(**changes: object) -> dict:
    return {"instance": INSTANCE, "host": "h", "version": __version__, "cpu": 1000, "memory": 1 << 30, "devices": [],
            **changes}  # fmt: skip


@pytest.fixture
def name() -> str:
    return f"far{uuid.uuid4().hex[:8]}"


@pytest.fixture
def far(service: Service, name: str, tmp_path: Path) -> WorkerClient:
    """A machine that is connected."""
    write_private(tmp_path / "token", Tokens(service.home).create(name, "worker"))
    client = WorkerClient(service.address, tmp_path / "token")
    client.register(entry())
    assert client.name == name
    return client


def offer(service: Service, worker: str, *names: str) -> PullOrder:
    attempt = uuid.uuid4().hex[:12]
    order = PullOrder(attempt=attempt, job=f"jobs/{attempt * 5}/t", key=f"jobs/{attempt * 5}/t/{attempt}",
                      worker=worker, names=names, grace=5)  # fmt: skip
    Desk(service.home).offer(order)
    return order


@contextmanager
def refused(status: int, what: str) -> Iterator[None]:
    with pytest.raises(Refused, match=f"(?s){what}") as error:
        yield
    assert error.value.status == status


def test_a_machines_token_opens_its_own_work_and_nothing_else(
    service: Service, far: WorkerClient, name: str, tmp_path: Path
) -> None:
    headers = {"Authorization": f"Bearer {far.token}"}
    for path in ("/", "/graphql", "/metrics", "/api/v1/tasks", "/api/v1/workers", "/api/v1/results", "/workers"):
        answer = requests.get(service.address + path, headers=headers, timeout=30)
        assert answer.status_code == 403, path
    answer = requests.post(f"{service.address}/api/v1/tasks", headers=headers, data="x", timeout=30)
    assert answer.status_code == 403 and "has the scope worker" in answer.json()["detail"]
    for scope in ("read", "submit", "admin"):
        assert service("POST", "/api/v1/pull", scope, json=entry(name="")).status_code == 403
    assert service("POST", "/api/v1/pull", None, json=entry(name="")).status_code == 401
    with refused(403, "is not for the worker 'other'.*mloc token create other"):
        WorkerClient(service.address, tmp_path / "token", "other").register(entry())
    assert WorkerClient(service.address, tmp_path / "token", f"{name}-2").register(entry())["name"] == f"{name}-2"
    order = offer(service, "another")
    with refused(410, "was given up, or is not known"):
        far.log(order.attempt, 0, b"x")


def test_who_cannot_enter_is_told_why(service: Service, far: WorkerClient) -> None:
    with refused(409, "is connected from h already"):
        far.register(entry(instance="f" * 32))
    with refused(409, f"this worker has MLOC 0.0.1, the service {re.escape(__version__)}"):
        far.register(entry(version="0.0.1"))
    with refused(409, "is served from h now"):
        far.next("f" * 32, [], [], 0)
    Tokens(service.home).revoke(far.name)
    with refused(401, "not known here"):
        far.next(INSTANCE, [], [], 0)


def test_work_is_handed_out_until_it_is_held_and_ended_once(
    service: Service, far: WorkerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, order = Desk(service.home), offer(service, far.name, "PATH")
    for _ in range(2):  # the first answer was lost on its way
        [given] = far.next(INSTANCE, [], [], 0)["begin"]
        assert given["attempt"] == order.attempt and given["environment"] == {"PATH": os.environ["PATH"]}
    assert far.next(INSTANCE, [order.attempt], [], 0.3) == {"begin": [], "stop": [], "gone": []}
    assert far.log(order.attempt, 0, b"one\n") == 4 and far.log(order.attempt, 2, b"e\ntwo\n") == 8
    with refused(409, "has 8 bytes"):
        far.log(order.attempt, 9, b"x")
    threading.Timer(0.5, lambda: desk.stop(order.attempt, kill=False)).start()
    begun = time.monotonic()
    told = far.next(INSTANCE, [order.attempt], [], 20)
    assert told["stop"] == [{"attempt": order.attempt, "kill": False}] and time.monotonic() - begun < 10
    far.end(order.attempt, {"code": 143})
    far.end(order.attempt, {"code": 0})
    assert desk.ending(order.attempt) == End(code=143) and desk.read(order.attempt, 0) == b"one\ntwo\n"
    desk.give_up(order.attempt)
    assert far.next(INSTANCE, [order.attempt], [], 5)["gone"] == [order.attempt]
    with refused(410, "was given up"):
        far.end(order.attempt, {"code": 0})


def test_a_variable_that_the_service_lacks_is_named(service: Service, far: WorkerClient) -> None:
    order = offer(service, far.name, "MLOC_TEST_NO_SUCH")
    assert far.next(INSTANCE, [], [], 0)["begin"] == []
    end = Desk(service.home).ending(order.attempt)
    assert end is not None and end.cause == "user" and "MLOC_TEST_NO_SUCH, which the service does not have" in end.words


def test_artifacts_by_way_of_the_service(service: Service, far: WorkerClient, tmp_path: Path) -> None:
    order = offer(service, far.name)
    work = order.job.rpartition("/")[0]
    store = Store(service.address, files=ServiceFiles(far))
    (tmp_path / "big").write_bytes(os.urandom(9 << 20))
    tree = store.push({"big": tmp_path / "big"})
    [file] = store.tree(tree).files
    data = store.piece(file.pieces[0])
    assert data == (tmp_path / "big").read_bytes()
    blob = f"/blobs/{file.pieces[0][:2]}/{file.pieces[0]}"
    half = bytearray(data[: 5 << 20])
    far.fetch(blob, half)
    assert bytes(half) == data, "it went on where it broke off"
    store.write(f"{work}/state.json", State(out=tree))
    found = store.read(f"{work}/state.json", State)
    assert found is not None and found.out == tree
    for key in (f"jobs/{'0' * 60}/state.json", f"{order.key}/other.json", "../tokens.json"):
        with pytest.raises(StoreError, match=r"was given up|there is no"):
            store.read(key, State)
    with pytest.raises(StoreError):
        store.write(f"jobs/{'0' * 60}/state.json", State(out=tree))
    Desk(service.home).give_up(order.attempt)
    with pytest.raises(StoreError, match="was given up"):
        store.write(f"{work}/state.json", State(out=tree))


def test_uploads_go_on_and_are_verified(service: Service, far: WorkerClient) -> None:
    offer(service, far.name)
    data = os.urandom(1000)
    digest = hashlib.sha256(data).hexdigest()
    blob = f"blobs/{digest[:2]}/{digest}"
    assert far.send(blob, data[:400], offset=0, size=1000) == 400
    assert far.send(blob, data[:400], offset=0, size=1000) == 400, "a part that comes twice counts once"
    with refused(409, "400 bytes are there"):
        far.send(blob, data[500:], offset=500, size=1000)
    assert far.send(blob, data[300:], offset=300, size=1000) == 1000 and far.measure(blob) == 1000
    wrong = f"blobs/00/{'0' * 64}"
    with refused(400, "what came has the SHA-256"):
        far.send(wrong, data, offset=0, size=1000)
    with refused(404, "404"):
        far.measure(wrong)


def worker(tmp_path: Path, address: str, token: str, *more: str) -> tuple[int, str]:
    write_private(tmp_path / "t", token)
    command = [str(Path(sys.executable).with_name("mloc")), "worker", "--connect", address, "--token-file",
               str(tmp_path / "t"), "--folder", str(tmp_path / "kept"), *more]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "300"})
    return ended.returncode, ended.stderr


def test_a_wrong_token_ends_the_worker(service: Service, tmp_path: Path) -> None:
    code, told = worker(tmp_path, service.address, "mloc_00000000_wrong")
    assert code == 2 and "this token is not known here" in told and "Traceback" not in told


def test_a_certificate_that_is_not_trusted_is_refused(tmp_path: Path) -> None:
    import ssl

    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    seen: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            self.send_error(401)

    server = HTTPServer(("127.0.0.1", 0), Answer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"https://localhost:{server.server_address[1]}"
    try:
        code, told = worker(tmp_path, address, "mloc_00000000_x")
        assert code == 2 and "is not trusted" in told and "--ca FILE" in told and "Traceback" not in told
        assert seen == [], "the token was shown to nobody"
        code, told = worker(tmp_path, address, "mloc_00000000_x", "--ca", str(certificate))
        assert code == 2 and "401" in told and seen == ["Bearer mloc_00000000_x"]
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--connect", "http://example.org", "--token-file", "TOKEN"], "not without TLS"),
        (["--connect", "example.org", "--token-file", "TOKEN"], "no address of a service"),
        (["--connect", "https://x", "--token-file", "/none"], "no such file"),
        (["--connect", "https://x", "--token-file", "OPEN"], "others on this machine may read it"),
        (["--connect", "https://x", "--token-file", "TOKEN", "--memory", "lots"], "is not a quantity"),
    ],
)
def test_what_cannot_work_is_told_at_once(arguments: list[str], told: str, tmp_path: Path) -> None:
    write_private(tmp_path / "token", "x")
    (tmp_path / "open").write_text("x")
    (tmp_path / "open").chmod(0o644)
    places = {"TOKEN": str(tmp_path / "token"), "OPEN": str(tmp_path / "open")}
    command = ["worker", "--folder", str(tmp_path / "kept"), *(places.get(one, one) for one in arguments)]
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 2 and told in answer.output
