"""`serve`: an endpoint that answers until its time is over or it is cancelled."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from pathlib import Path

import uvicorn

from executors.base import ExecutorError, Interrupted, Result
from executors.context import TaskContext
from executors.inference import model_name, weights_of
from executors.serving.engines import Lease
from executors.serving.front import Front
from executors.serving.registry import write_private
from mloc_dagster.files.atomic import write_json
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.serve import is_loopback

_POLL_SECONDS = 0.1
_REPORT_SECONDS = 5.0


class ServeExecutor:
    """`serve`: answers requests of the OpenAI protocol until it is cancelled or its time is over."""

    name = "serve"
    inline = False
    uses = frozenset({
        "model.source.*", "model.config.fp16", "model.config.bf16", "model.adapters", "model.vllm.*",
        "model.transformers.*", "inference.*", "enforce_cpu", "checkpoint.*", "serve.*", "rag.*",
    })  # fmt: skip
    section = None

    def run(self, ctx: TaskContext) -> Result:
        """Listen, load, answer, end."""
        listener = _listener(ctx)
        with listener:
            key, key_file = _key(ctx)
            try:
                return _serve(ctx, listener, key, key_file)
            finally:
                for leftover in ("api_key", "endpoint.json"):
                    (ctx.out / leftover).unlink(missing_ok=True)


def _serve(ctx: TaskContext, listener: socket.socket, key: str, key_file: Path | None) -> Result:
    weights, used = weights_of(ctx)
    lease = Lease(ctx, weights, used, private=True)
    try:
        front = Front(ctx, lease, key, model_name(ctx))
        url = _url(ctx, listener)
        server = uvicorn.Server(
            uvicorn.Config(front.app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
        )
        thread = threading.Thread(target=server.run, args=([listener],), name="http", daemon=True)
        thread.start()
        while not server.started:
            time.sleep(_POLL_SECONDS)
        told: dict[str, Json] = {"url": url, "model": front.model, "engine": lease.spec.kind}
        if key_file is not None:
            told["api_key_file"] = str(key_file)
        write_json(ctx.out / "endpoint.json", told)
        print(f"serving {front.model} at {url}", flush=True)
        begun = time.monotonic()
        try:
            ended = _until_over(ctx, front, lease, url, begun)
        finally:
            server.should_exit = True
            thread.join(10)
            front.close()
    finally:
        lease.close()
    seconds = time.monotonic() - begun
    return Result(
        payload={"ok": True, "url": url, "model": front.model, "ended_by": ended,
                 "usage": {"num_requests": front.requests, "latency_sec": seconds}},
        metrics={"requests": front.requests, "seconds": seconds},
        metadata={"engine": lease.spec.kind, "engine_start": lease.endpoint.start,
                  "engine_seconds": lease.endpoint.seconds, "engine_replaced": front.replaced,
                  "weights_digest": used.whole, "weights": list(used.parts), "url": url,
                  "warnings": [*lease.warnings, *front.warnings]},
    )  # fmt: skip


def _until_over(ctx: TaskContext, front: Front, lease: Lease, url: str, begun: float) -> str:
    """Wait, replace an engine that died, and return what ended the time: `ttl` or `idle_timeout`.

    Raises Interrupted when the stage was cancelled.
    """
    section, reported = ctx.spec.serve, 0.0
    while not ctx.stop.wait(_POLL_SECONDS):
        now = time.monotonic()
        if now - reported >= _REPORT_SECONDS:
            reported = now
            ctx.progress.update(now - begun, section.ttl, f"seconds at {url}", requests=front.requests)
            ctx.progress.flush()
        if section.ttl is not None and now - begun >= section.ttl:
            return "ttl"
        if section.idle_timeout is not None and front.idle_seconds() >= section.idle_timeout:
            return "idle_timeout"
        if lease.died():
            lease.replace()
            front.replaced += 1
    raise Interrupted


def _listener(ctx: TaskContext) -> socket.socket:
    """The socket, before anything is loaded; raises ExecutorError when it cannot be had."""
    section = ctx.spec.serve
    if not is_loopback(section.host) and section.api_key is None:
        raise ExecutorError(
            f"serve.host is {section.host}, which other machines reach, and there is no serve.api_key.",
            "Add api_key: ${NAME}, or write host: 127.0.0.1.",
        )
    family = socket.AF_INET6 if ":" in section.host else socket.AF_INET
    try:
        return socket.create_server((section.host, section.port), family=family, backlog=256)
    except OSError as error:
        raise ExecutorError(
            f"serve cannot listen on {section.host} port {section.port}: {error.strerror or error}.",
            "End whatever uses the port, or write port: 0 for a free one.",
        ) from error


def _url(ctx: TaskContext, listener: socket.socket) -> str:
    host = ctx.spec.serve.host
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}/v1"


def _key(ctx: TaskContext) -> tuple[str, Path | None]:
    """The users' token, and the file that holds one that was made here."""
    if ctx.spec.serve.api_key is not None:
        return ctx.spec.serve.api_key, None
    path = ctx.out / "api_key"
    path.unlink(missing_ok=True)
    key = secrets.token_urlsafe(32)
    write_private(path, key)
    return key, path
