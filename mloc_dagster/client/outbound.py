"""What a worker says that reaches out; its token is read from a file each time, so that it may be replaced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast
from urllib.parse import quote

from mloc_dagster.client import shapes
from mloc_dagster.client.client import Client

_BLOCK = 1 << 16
_SECONDS = 20.0
_MORE_SECONDS = 10.0


class WorkerClient(Client):
    """The service as one worker sees it. Every method raises Refused, or OSError when nobody answers."""

    def __init__(self, address: str, token_file: Path, name: str = "", *, ca: Path | None = None) -> None:
        """`ca` is a file of certificates to trust in place of the machine's own. Raises ValueError, OSError."""
        super().__init__(address, timeout=_SECONDS, ca=ca)
        self._file, self.name = token_file, name

    @property
    def token(self) -> str:
        """The worker's token."""
        return self._file.read_text("utf-8").strip()

    def register(self, told: Mapping[str, object]) -> shapes.Entered:
        """Say what this machine has."""
        body = json.dumps({**told, "name": self.name}).encode()
        found = cast(shapes.Entered, self._json("POST", "/pull", {}, body, "application/json"))
        self.name = found["name"]
        return found

    def next(self, instance: str, holding: list[str], stopping: list[str], wait: float) -> shapes.Work:
        """Ask what there is to do, and wait so many seconds for it."""
        body = json.dumps({"instance": instance, "holding": holding, "stopping": stopping, "wait": wait}).encode()
        patience = wait + _MORE_SECONDS
        path = f"/pull/{self._part(self.name)}/next"
        return cast(shapes.Work, self._json("POST", path, {}, body, "application/json", patience=patience))

    def log(self, attempt: str, offset: int, block: bytes) -> int:
        """Bring a part of a log; returns how much of it has arrived."""
        path = f"{self._attempt(attempt)}/log"
        found = self._json("POST", path, {"offset": offset}, block, "application/octet-stream")
        return cast(shapes.Arrival, found)["arrived"]

    def end(self, attempt: str, told: Mapping[str, object]) -> None:
        """Say how an attempt ended."""
        self._json("POST", f"{self._attempt(attempt)}/end", {}, json.dumps(told).encode(), "application/json")

    def measure(self, path: str) -> int:
        """Return the size of something in the artifact store, in bytes."""
        with self._open("HEAD", self._stored(path), {}) as answer:
            return int(answer.headers["Content-Length"])

    def fetch(self, path: str, into: bytearray) -> None:
        """Add what is missing of something in the artifact store; what has come stays when it breaks off."""
        headers = {"Range": f"bytes={len(into)}-"} if into else {}
        with self._open("GET", self._stored(path), {}, headers=headers) as answer:
            if into and answer.status != 206:
                into.clear()
            missing = int(answer.headers["Content-Length"])
            while block := answer.read1(_BLOCK):
                into += block
                missing -= len(block)
        if missing:
            raise ConnectionError(f"{path} ended {missing} bytes early")

    def send(self, path: str, part: bytes, *, offset: int, size: int) -> int:
        """Send a part of something into the artifact store; returns how much of it is there."""
        found = self._json(
            "PUT", self._stored(path), {"offset": offset, "size": size}, part, "application/octet-stream"
        )
        return cast(shapes.Arrival, found)["arrived"]

    def _stored(self, path: str) -> str:
        return f"/pull/{self._part(self.name)}/artifacts/{quote(path.lstrip('/'))}"

    def _attempt(self, attempt: str) -> str:
        return f"/pull/{self._part(self.name)}/attempts/{self._part(attempt)}"

    @staticmethod
    def _part(text: str) -> str:
        return quote(text, safe="")
