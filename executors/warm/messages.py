"""What is said on a connection to the warm process: one ask, then answers, the last of them from the stage itself.

With an ask come file descriptors: the asker's process (pidfd), the stage's log, and the locks of the work. With
`started` comes the stage's process. The environment, which may hold secrets, travels only here: through the
kernel, between processes of one user.
"""

from __future__ import annotations

import os
import socket
from typing import Literal

from pydantic import BaseModel, ConfigDict

from mloc_dagster.processes.sockets import receive_frame, send_frame

MOST_HANDLES = 8
_MARK = b"m"


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Ask(_Message):
    """`run`: run a job as `python -m executors.host JOB` would in this folder; `stop`: take no more, and end."""

    action: Literal["run", "stop"]
    job: str = ""
    environment: dict[str, str] = {}
    folder: str = ""
    umask: int = 0o022
    doors: tuple[str, ...] = ()
    """Files of the control groups to enter."""


class Answer(_Message):
    """`started`: process `pid` is there, and waits for a byte to begin; `refused`: why, in words; `ended`: its code."""

    state: Literal["started", "refused", "ended", "stopping"]
    pid: int = 0
    code: int = 0
    """Exit code; negative: the signal that killed it."""
    reason: str = ""


def send(connection: socket.socket, message: Ask | Answer, handles: tuple[int, ...] = ()) -> None:
    """Send a message and file descriptors."""
    socket.send_fds(connection, [_MARK], handles) if handles else connection.sendall(_MARK)
    send_frame(connection, message.model_dump_json().encode())


def receive_ask(connection: socket.socket) -> tuple[Ask, list[int]]:
    """Receive an ask and what comes with it; raises OSError or ValueError."""
    handles = _handles(connection)
    try:
        return Ask.model_validate_json(receive_frame(connection)), handles
    except BaseException:
        for handle in handles:
            os.close(handle)
        raise


def receive_answer(connection: socket.socket) -> tuple[Answer, list[int]]:
    """Receive an answer and what comes with it; raises OSError or ValueError."""
    handles = _handles(connection)
    return Answer.model_validate_json(receive_frame(connection)), handles


def _handles(connection: socket.socket) -> list[int]:
    mark, handles, *_ = socket.recv_fds(connection, len(_MARK), MOST_HANDLES)
    if not mark:
        raise ConnectionResetError("the other end closed the connection")
    return handles
