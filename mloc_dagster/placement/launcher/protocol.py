"""What a launcher and a pool say to each other: one request and one answer a connection, over a unix socket.

A message is a frame of JSON. The environment of the submitter, which may hold secrets, travels only here: through the
kernel, to a process of the same user.
"""

from __future__ import annotations

import socket
from typing import Literal

from pydantic import BaseModel, ConfigDict

from mloc_dagster.processes.sockets import receive_frame, send_frame


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
    send_frame(connection, message.model_dump_json().encode())


def receive_request(connection: socket.socket) -> Request:
    """Receive a request; raises OSError or ValueError."""
    return Request.model_validate_json(receive_frame(connection))


def receive_answer(connection: socket.socket) -> Answer:
    """Receive an answer; raises OSError or ValueError."""
    return Answer.model_validate_json(receive_frame(connection))
