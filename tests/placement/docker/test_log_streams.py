"""The log of a container over connections that end in every way, from an engine that speaks the protocol by hand."""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mloc_dagster.placement.docker import client as client_module
from mloc_dagster.placement.docker.carrier import DockerCarrier, DockerContainer
from mloc_dagster.placement.remote.carrier import Ending
from mloc_dagster.placement.remote.follow import Follower
from mloc_dagster.placement.workers.engine import Docker
from tests.waiting import wait_for

pytestmark = pytest.mark.timeout(60)


def frame(data: bytes) -> bytes:
    return struct.pack(">BxxxL", 1, len(data)) + data


class Handler(BaseHTTPRequestHandler):
    """`streams` says what each connection to the log gives; the last one is followed by the end of the container."""

    streams: list[Callable[[Any], None]]
    over = threading.Event()

    def do_GET(self) -> None:
        if self.path.endswith("/version"):
            return self._answer({"ApiVersion": "1.44", "MinAPIVersion": "1.24"})
        if "/logs" not in self.path:
            status = "exited" if self.over.is_set() else "running"
            told = {"Id": "x", "Config": {"Tty": False}, "State": {"Status": status, "ExitCode": 0}, "Image": "i"}
            return self._answer(told)
        self.send_response(200)
        self.end_headers()
        self.streams.pop(0)(self.wfile)
        if not self.streams:
            self.over.set()
        self.close_connection = True
        return None

    def _answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    Handler.over.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"tcp://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def silent(file: Any) -> None:
    file.write(frame(b"one\n"))
    file.flush()
    time.sleep(20)


def torn(file: Any) -> None:
    file.write(frame(b"one\n") + frame(b"two\n")[:3])


def whole(file: Any) -> None:
    file.write(frame(b"one\n") + frame(b"two\n"))


@pytest.mark.parametrize("broken", [silent, torn])
def test_a_log_is_read_on_over_a_connection_that_is_dead_or_torn(
    broken: Callable[[Any], None], address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_TIMEOUT_SECONDS", 1)
    Handler.streams = [broken, whole]
    declared = Docker(host=address, image="i")
    follower = Follower(DockerContainer("w", declared, "x" * 64, {"mloc.attempt": "a"}), tmp_path / "log")
    wait_for(lambda: follower.over(0.05), "the end", 15)
    assert follower.failure is None and follower.ending == Ending(0)
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


def test_what_was_never_started_is_swept_and_what_has_just_ended_is_not() -> None:
    def container(status: str, seconds: float) -> Any:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() - seconds))
        never = "0001-01-01T00:00:00Z"
        state = {"Status": status, "FinishedAt": never if status == "created" else f"{moment}Z"}
        made = SimpleNamespace(attrs={"State": state, "Created": f"{moment}Z"}, status=status)
        made.remove = lambda **options: removed.append((status, seconds))
        return made

    removed: list[tuple[str, float]] = []
    kept = [container(status, seconds) for status in ("created", "exited") for seconds in (5, 100)]

    def listed(filters: dict[str, Any], **options: object) -> list[Any]:
        return [one for one in kept if one.status in filters["status"]]

    carrier = DockerCarrier("w", Docker(host="unix:///none", image="i", keep_failed_seconds=0), "s3://b")
    client: Any = SimpleNamespace(containers=SimpleNamespace(list=listed))
    carrier._sweep(client)
    assert removed == [("created", 100), ("exited", 100)]
