"""The client and a service that goes away in the middle: nothing half is kept, and what happened is told."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from mloc_dagster.client import Client


@contextmanager
def answering(*parts: bytes, gate: threading.Event | None = None) -> Iterator[str]:
    """A server that answers one request with some bytes, the last of them after a gate, and then goes away."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with closing(connection):
                connection.recv(65_536)
                for place, part in enumerate(parts):
                    if gate is not None and place:
                        gate.wait(30)
                    connection.sendall(part)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def told(data: bytes) -> str:
    return f"Repr-Digest: sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


@pytest.mark.parametrize(
    ("headers", "what"),
    [("Content-Length: 100", "ended after 4 of 100 bytes"), (f"Content-Length: 4\r\n{told(b'other')}", "digest")],
)
def test_a_download_that_is_not_whole_is_not_put_in_place(tmp_path: Path, headers: str, what: str) -> None:
    target = tmp_path / "m.bin"
    target.write_bytes(b"before")
    answer = f"HTTP/1.1 200 OK\r\n{headers}\r\n\r\ndata".encode()
    with answering(answer) as address, pytest.raises(OSError, match=what):
        Client(address).download("t", "a/m.bin", target)
    assert target.read_bytes() == b"before" and os.listdir(tmp_path) == ["m.bin"]


def test_a_whole_download_is_put_in_place(tmp_path: Path) -> None:
    with answering(f"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n{told(b'data')}\r\n\r\ndata".encode()) as address:
        got = Client(address).download("t", "a/m.bin", tmp_path / "m.bin")
    assert got.read_bytes() == b"data" and os.listdir(tmp_path) == ["m.bin"]


def chunk(text: str) -> bytes:
    return f"{len(text):x}\r\n{text}\r\n".encode()


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_a_stream_that_is_cut_is_told_as_such() -> None:
    with answering(HEAD + chunk("a | one\n")) as address:
        lines = Client(address).logs("t", follow=True)
        assert next(lines) == "a | one"
        with pytest.raises(ConnectionError, match="ended its answer early"):
            next(lines)


def test_signs_of_life_are_no_lines_and_silence_is_borne() -> None:
    gate = threading.Event()
    timer = threading.Timer(1.0, gate.set)
    timer.start()
    with answering(HEAD + chunk("\n"), chunk("a | one\n") + b"0\r\n\r\n", gate=gate) as address:
        assert list(Client(address, timeout=0.2).logs("t", follow=True)) == ["a | one"]
    timer.join()
