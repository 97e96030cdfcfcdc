"""A receiver that keeps what it accepts under its Idempotency-Key, once, and misbehaves as it is told."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Manner = Literal["fail", "hang", "accept and hang", "accept and break off"]


@dataclass
class Keeper:
    """`manners` are those of the next requests; then it behaves."""

    address: str = ""
    manners: list[Manner] = field(default_factory=list)
    accepted: Counter[str] = field(default_factory=Counter)
    asked: list[tuple[str, int]] = field(default_factory=list)
    bodies: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)

    def take(self, key: str, headers: dict[str, str], body: bytes) -> int:
        """Accept what comes under a key for the first time; returns the status."""
        if key in self.accepted:
            return 409
        self.accepted[key] += 1
        self.bodies[key], self.headers[key] = body, headers
        return 201


@contextmanager
def running_keeper() -> Iterator[Keeper]:
    """Serve until the block ends."""
    keeper = Keeper()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            key = self.headers["Idempotency-Key"]
            manner = keeper.manners.pop(0) if keeper.manners else None
            if manner == "hang":
                keeper.asked.append((key, 0))
                keeper.over.wait(30)
                return
            status = 503 if manner == "fail" else keeper.take(key, dict(self.headers), body)
            keeper.asked.append((key, status))
            if manner == "accept and hang":
                keeper.over.wait(30)
                return
            if manner == "accept and break off":
                return
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    keeper.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield keeper
    finally:
        keeper.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
