"""The REST calls of a Qdrant server that MLOC makes, answered on the loopback by the client's own engine in memory.

It stands for a server where none can be had: the client really speaks HTTP to it, with its own requests and its own
reading of the answers. What it does not show is how a real server keeps and searches vectors.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qdrant_client import QdrantClient, models


class FakeQdrant:
    """What the server holds, the calls that it got, and a fault that it can be told to show."""

    def __init__(self, api_key: str) -> None:
        self.api_key, self.url = api_key, ""
        self.held = QdrantClient(":memory:")
        self.calls: list[str] = []
        self.upserts_left: int | None = None
        """After so many uploads, each further one fails."""

    def collections(self) -> list[str]:
        """Names of all collections."""
        return sorted(one.name for one in self.held.get_collections().collections)

    def aliases(self) -> dict[str, str]:
        """Alias → collection."""
        return {one.alias_name: one.collection_name for one in self.held.get_aliases().aliases}

    def answer(self, verb: str, path: list[str], body: dict[str, Any]) -> Any:
        """Carry out one call; raises ValueError for what is not there."""
        match verb, path:
            case "GET", ["aliases"]:
                return self.held.get_aliases()
            case "POST", ["collections", "aliases"]:
                actions = [_alias_action(action) for action in body["actions"]]
                return self.held.update_collection_aliases(actions)
            case "GET", ["collections", name, "exists"]:
                return {"exists": self.held.collection_exists(name)}
            case "GET", ["collections", name]:
                return self.held.get_collection(name)
            case "PUT", ["collections", name]:
                return self.held.create_collection(name, models.VectorParams.model_validate(body["vectors"]))
            case "DELETE", ["collections", name]:
                return self.held.delete_collection(name)
            case "PUT", ["collections", name, "points"]:
                self._count_upsert()
                return self.held.upsert(name, [models.PointStruct.model_validate(one) for one in body["points"]])
            case "POST", ["collections", name, "points", "count"]:
                return self.held.count(name)
            case "POST", ["collections", name, "points", "query", "batch"]:
                asked = [models.QueryRequest.model_validate(one) for one in body["searches"]]
                return self.held.query_batch_points(name, asked)
        raise ValueError(f"{verb} {path} is no call that the fake knows")

    def _count_upsert(self) -> None:
        if self.upserts_left == 0:
            raise ValueError("disk full")
        if self.upserts_left is not None:
            self.upserts_left -= 1


def _alias_action(action: dict[str, Any]) -> Any:
    kind = models.CreateAliasOperation if "create_alias" in action else models.DeleteAliasOperation
    return kind.model_validate(action)


@contextmanager
def serving(fake: FakeQdrant) -> Iterator[FakeQdrant]:
    """Serve on a free port of the loopback interface."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0].strip("/").split("/")
            with lock:
                status, answer = self._outcome(path, json.loads(raw or b"{}"))
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _outcome(self, path: list[str], body: dict[str, Any]) -> tuple[int, Any]:
            fake.calls.append(f"{self.command} /{'/'.join(path)}")
            if self.headers.get("api-key") != fake.api_key:
                return 401, "Must provide an API key"
            try:
                result = fake.answer(self.command, path, body)
            except ValueError as error:
                return 500, {"status": {"error": str(error)}, "time": 0.0}
            return 200, {"result": _plain(result), "status": "ok", "time": 0.0}

        do_GET = do_PUT = do_POST = do_DELETE = _reply

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        fake.url = f"http://127.0.0.1:{http.server_address[1]}"
        try:
            yield fake
        finally:
            http.shutdown()


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.model_dump(mode="json", exclude_none=True) if hasattr(value, "model_dump") else value
