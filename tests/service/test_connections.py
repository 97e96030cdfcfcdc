"""Clients that hold a connection and do nothing with it are not waited for: a real server, with short patience."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
import uvicorn

from mloc_dagster.service import connections

_BLOCK = b"x" * (1 << 16)


async def app(scope, receive, send) -> None:
    """Answers at once, or (`/much`) with more than any buffer holds."""
    if scope["type"] == "lifespan":
        return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.sleep(2)
        await send({"type": "websocket.send", "text": "late"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(2000 if scope["path"] == "/much" else 0):
        await send({"type": "http.response.body", "body": _BLOCK, "more_body": True})
    await send({"type": "http.response.body", "body": b"end"})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server whose patience is one second."""
    monkeypatch.setattr(connections, "HEADER_SECONDS", 1.0)
    monkeypatch.setattr(connections, "STALLED_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        settings = uvicorn.Config(app, http=connections.Bounded, log_level="critical", lifespan="off")
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield bound.getsockname()[1]
        server.should_exit = True
        thread.join(20)


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def ended(connection: socket.socket) -> bool:
    """Whether the server has let the connection go; waits for it."""
    try:
        return connection.recv(65_536) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: a\r\nX: "], ids=["nothing", "half a head"])
def test_headers_that_do_not_come_are_not_waited_for(port: int, said: bytes) -> None:
    with connected(port) as connection:
        connection.sendall(said)
        begun = time.monotonic()
        assert ended(connection) and time.monotonic() - begun < 15


def test_headers_that_trickle_are_not_waited_for(port: int) -> None:
    """A byte now and then does not begin the time anew."""
    with connected(port) as connection:
        connection.settimeout(0.2)
        begun = time.monotonic()
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
        with pytest.raises(ConnectionError):
            while time.monotonic() - begun < 15:
                connection.sendall(b"X: y\r\n")
                with suppress(TimeoutError):
                    if connection.recv(100) == b"":
                        raise ConnectionResetError


def test_a_second_request_has_its_time_too(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = b""
        while not answer.endswith(b"0\r\n\r\n"):
            answer += connection.recv(4096)
        time.sleep(0.5)
        connection.sendall(b"GET / HT")
        assert ended(connection)


def test_a_reader_that_stalls_is_let_go(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(b"GET /much HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(4)  # reads nothing
        connection.settimeout(20)
        read = 0
        with suppress(ConnectionError):
            while block := connection.recv(1 << 20):
                read += len(block)
    assert read < 2000 * len(_BLOCK)


def test_a_slow_reader_gets_all_of_it(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(b"GET /much HTTP/1.1\r\nHost: a\r\n\r\n")
        read = 0
        for turn in range(100_000):
            block = connection.recv(1 << 20)
            read += len(block)
            if not block or read > 2000 * len(_BLOCK):
                break
            if turn < 4:
                time.sleep(0.4)  # less than its patience at once, more together
    assert read > 2000 * len(_BLOCK)


def test_a_websocket_outlasts_the_time_of_headers(port: int) -> None:
    from websockets.sync.client import connect

    with connect(f"ws://127.0.0.1:{port}/") as opened:
        assert opened.recv(timeout=20) == "late"
