"""`mloc verify` against a service that answers wrongly, or not at all."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from typer.testing import CliRunner

from mloc_dagster.cli import app
from mloc_dagster.client import Client
from mloc_dagster.client.verify import verify


@contextmanager
def anything_goes() -> Iterator[str]:
    """A server that says yes to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            told = {"status": "FAILURE", "task_id": "abc", "tasks": [], "cursor": None, "workers": []}
            body = json.dumps(told).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_service_that_lets_everything_pass_does_not_pass() -> None:
    with anything_goes() as address:
        found = {check.name: check.wrong for check in verify(Client(address, "t"), address, seconds=1)}
    assert found["health"] == ""
    assert found["a request without a token is refused"].startswith("anyone may list tasks")
    assert found["a bad file is refused with its faults"] == "a file with an unknown taskType was accepted"
    assert found["the task succeeds"].startswith("abc ended as FAILURE")
    assert found["its result is what it should be"].endswith("does not hold what it was to echo")
    assert found["its usage is counted"].startswith("an answer of another shape")
    assert "mloc_queue_depth" in found["metrics"]


def test_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    answer = CliRunner().invoke(app, ["verify", "--url", f"http://127.0.0.1:{port}", "--token", "t"])
    assert answer.exit_code == 1 and answer.stdout.count("nobody answers") == 6
    answer = CliRunner().invoke(app, ["verify", "--url", "ftp://h", "--token", "t"])
    assert answer.exit_code == 2 and "no address of a service" in answer.stderr


def test_without_a_token_it_says_where_it_looked(tmp_path) -> None:
    answer = CliRunner().invoke(app, ["--home", str(tmp_path), "verify"])
    assert answer.exit_code == 2 and "write --token, or export MLOC_TOKEN" in answer.stderr
