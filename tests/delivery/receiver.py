"""A server on the loopback interface that takes what is delivered to a URL, and does as it is told."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_BLOCK = 1 << 16
_KEPT = 1 << 20


@dataclass
class Taken:
    """One request: `head` is the start of its body, `digest` the SHA-256 of all of it."""

    method: str
    path: str
    headers: dict[str, str]
    head: bytes
    size: int
    digest: str
    status: int


@dataclass
class Receiver:
    """What came in, and which statuses (with headers) the next requests get; 200 when none is left."""

    address: str = ""
    taken: list[Taken] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    says: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)


@contextmanager
def running_receiver() -> Iterator[Receiver]:
    """Serve until the block ends."""
    receiver = Receiver()

    class Handler(_Handler):
        the_receiver = receiver

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    receiver.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    the_receiver: Receiver
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        left, head, digest = int(self.headers["Content-Length"]), b"", hashlib.sha256()
        while left and (block := self.rfile.read(min(left, _BLOCK))):
            left -= len(block)
            digest.update(block)
            head += block if len(head) < _KEPT else b""
        statuses = self.the_receiver.statuses
        status = statuses.pop(0) if statuses else 200
        size = int(self.headers["Content-Length"])
        taken = Taken(self.command, self.path, dict(self.headers), head, size, digest.hexdigest(), status)
        self.the_receiver.taken.append(taken)
        self.send_response(status)
        for key, value in self.the_receiver.headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(self.the_receiver.says)))
        self.end_headers()
        self.wfile.write(self.the_receiver.says)

    do_PUT = do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None:
        pass
