"""A server of the OpenAI protocol on loopback whose answers a test writes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
Message = dict[str, Any]
Script = Callable[[Body], Message]
"""From a request to the message that answers it; a message `{"status": 500}` is an HTTP error."""


def say(text: str) -> Message:
    """The model answers with text."""
    return {"role": "assistant", "content": text}


def call(tool: str, arguments: dict[str, Any] | str, number: int = 0) -> Message:
    """The model calls a tool; arguments that are text go out as they are."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    function = {"name": tool, "arguments": text}
    tool_call = {"id": f"call_{tool}_{number}", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [tool_call]}


def asked(body: Body) -> str:
    """The first message of the user."""
    return next(turn["content"] for turn in body["messages"] if turn["role"] == "user")


def last(body: Body) -> Message:
    """The newest message."""
    return body["messages"][-1]


def turns(body: Body) -> int:
    """How many answers the model has given in this conversation."""
    return sum(turn["role"] == "assistant" for turn in body["messages"])


@dataclass
class Scripted:
    """A running server; `requests` are the bodies that it got."""

    script: Script
    requests: list[Body] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(script: Script) -> Iterator[Scripted]:
    """Serve a script until the end of the block."""
    state = Scripted(script)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.requests.append(body)
            state.headers.append({name.lower(): value for name, value in self.headers.items()})
            message = state.script(body)
            status = message.get("status", 200)
            finish = "tool_calls" if message.get("tool_calls") else "stop"
            answer: Body = {
                "id": "x", "object": "chat.completion", "created": int(time.time()), "model": body["model"],
                "choices": [{"index": 0, "finish_reason": message.pop("finish", finish), "message": message}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
            }  # fmt: skip
            content = json.dumps(answer if status == 200 else {"error": {"message": "broken", "type": "x"}}).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                return  # the client gave up

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
