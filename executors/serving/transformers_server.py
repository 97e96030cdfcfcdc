"""Serves the Transformers engine over HTTP on the loopback."""

from __future__ import annotations

import socket

import uvicorn

from executors.inference.transformers_engine import TransformersEngine
from executors.serving.app import engine_app
from executors.serving.batching import Batcher
from executors.serving.constrained import Grammars
from executors.serving.registry import EngineFolder, EngineSpec, EngineState


def serve(folder: EngineFolder, spec: EngineSpec, state: EngineState) -> None:
    """Load the model and answer requests until the process is ended."""
    engine = TransformersEngine(spec.weights(), spec.transformers, dtype=spec.dtype, on_gpu=spec.on_gpu)
    for warning in engine.warnings:
        print(f"warning: {warning}", flush=True)
    grammars = Grammars(engine.tokenizer, engine.vocabulary, engine.ends)
    app = engine_app(Batcher(engine, grammars), grammars, spec.name, folder.token())
    listener = socket.create_server(("127.0.0.1", 0))
    ready = {
        "port": listener.getsockname()[1], "ready": True, "context": engine.context,
        "chat_template": bool(getattr(engine.tokenizer, "chat_template", None)),
    }  # fmt: skip
    folder.write_state(state.model_copy(update=ready))
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listener])
