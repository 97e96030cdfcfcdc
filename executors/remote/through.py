"""The artifact store by way of the service, for machines that reach nothing else.

A blob that comes down is gone on with where it broke off (Range); one that goes up is sent in parts, and what has
arrived of it is not sent again.
"""

from __future__ import annotations

import threading
from collections import defaultdict

from mloc_dagster.client.client import Refused
from mloc_dagster.client.outbound import WorkerClient

_PART = 4 << 20
"""Bytes of one request."""


class ServiceFiles:
    """What a `Store` asks of a file system. Raises FileNotFoundError, PermissionError for what is refused, OSError."""

    protocol = "mloc"

    def __init__(self, client: WorkerClient) -> None:
        self._client = client
        self._halves: dict[tuple[int, str], bytearray] = defaultdict(bytearray)

    def cat_file(self, path: str) -> bytes:
        """Return what is stored under a path."""
        half = (threading.get_ident(), path)
        try:
            found = self._halves[half]
            self._client.fetch(path, found)
        except Refused as refused:
            self._halves.pop(half, None)
            raise _told(refused, path) from None
        return bytes(self._halves.pop(half))

    def info(self, path: str) -> dict[str, float]:
        """Return its size in bytes; the service touches what is asked for, so it stays for a while."""
        try:
            return {"size": self._client.measure(path)}
        except Refused as refused:
            raise _told(refused, path) from None

    def pipe_file(self, path: str, data: bytes) -> None:
        """Store something under a path, as a whole."""
        sent = 0
        try:
            while True:
                sent = self._client.send(path, data[sent : sent + _PART], offset=sent, size=len(data))
                if sent >= len(data):
                    return
        except Refused as refused:
            raise _told(refused, path) from None


def _told(refused: Refused, path: str) -> OSError:
    """A refusal as an error of files; one that may pass is worth another try."""
    if refused.status == 404:
        return FileNotFoundError(path)
    if refused.status in (408, 429, 502, 503, 504):
        return ConnectionError(str(refused))
    return PermissionError(str(refused))
