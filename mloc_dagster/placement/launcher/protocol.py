"""What a launcher and a pool say to each other: one request and one answer a connection, over a unix socket.

A frame is a length (4 bytes, big-endian) and that many bytes of JSON. The environment of the submitter, which may hold
secrets, travels only here: through the kernel, to a process of the same user.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

_LENGTH = struct.Struct("!I")
_LONGEST = 16 << 20
_CREDENTIALS = struct.Struct("3i")


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Request(_Message):
    """`run`: start a run as the sender would; `stop`: take no more runs, and end after those that are going on."""

    action: Literal["run", "stop"]
    run_id: str = ""
    environment: dict[str, str] = {}
    folder: str = ""
    umask: int = 0o022


class Answer(_Message):
    """`started`: process `pid` has the run; `stale`: the pool's code is no longer that on the disk; `stopping`."""

    state: Literal["started", "stale", "stopping"]
    pid: int = 0


def send(connection: socket.socket, message: Request | Answer) -> None:
    """Send one message."""
    body = message.model_dump_json().encode()
    connection.sendall(_LENGTH.pack(len(body)) + body)


def receive_request(connection: socket.socket) -> Request:
    """Receive a request; raises OSError or ValueError."""
    return Request.model_validate_json(_frame(connection))


def receive_answer(connection: socket.socket) -> Answer:
    """Receive an answer; raises OSError or ValueError."""
    return Answer.model_validate_json(_frame(connection))


def is_same_user(connection: socket.socket) -> bool:
    """Whether the other end runs as this user (SO_PEERCRED, unix(7))."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(raw)[1] == os.getuid()


@contextmanager
def short_name(path: Path) -> Iterator[str]:
    """Give a name of a socket that fits into an address (108 bytes), however long its path is."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _frame(connection: socket.socket) -> bytes:
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if length > _LONGEST:
        raise ValueError(f"a message of {length} bytes; the longest is {_LONGEST}")
    return _exactly(connection, length)


def _exactly(connection: socket.socket, length: int) -> bytes:
    block = bytearray()
    while len(block) < length:
        part = connection.recv(min(1 << 16, length - len(block)))
        if not part:
            raise ConnectionResetError("the other end closed the connection")
        block += part
    return bytes(block)
