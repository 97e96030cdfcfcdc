"""Unix sockets between processes of one user, and frames on them: a length (4 bytes, big-endian), then the bytes."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LENGTH = struct.Struct("!I")
_LONGEST = 16 << 20
_CREDENTIALS = struct.Struct("3i")
_WAITING = 128


def listen(address: Path) -> socket.socket:
    """Listen on a socket that only this user can open; takes the place of one that a dead process has left."""
    address.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        with short_name(address) as name:
            listener.bind(name)
    finally:
        os.umask(before)
    listener.listen(_WAITING)
    return listener


def connect(address: Path) -> socket.socket | None:
    """Return a connection, or None when nobody listens."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_name(address) as name:
            connection.connect(name)
    except OSError:
        connection.close()
        return None
    return connection


def is_there(path: Path, inode: int) -> bool:
    """Whether a path still names the file that had this inode; a look that fails for another reason says yes."""
    try:
        return path.stat().st_ino == inode
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR)


@contextmanager
def short_name(path: Path) -> Iterator[str]:
    """Give a name of a socket that fits into an address (108 bytes), however long its path is."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def is_same_user(connection: socket.socket) -> bool:
    """Whether the other end runs as this user (SO_PEERCRED, unix(7))."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(raw)[1] == os.getuid()


def send_frame(connection: socket.socket, body: bytes) -> None:
    """Send one frame."""
    connection.sendall(_LENGTH.pack(len(body)) + body)


def receive_frame(connection: socket.socket) -> bytes:
    """Receive one frame; raises OSError when the other end has closed, ValueError for one that is too long."""
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
