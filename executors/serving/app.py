"""The HTTP side of the Transformers engine: the OpenAI protocol over a batcher."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from executors.base import ExecutorError
from executors.inference.adapters import RuntimeAdapter
from executors.inference.engine import Draft
from executors.serving.access import Bearer
from executors.serving.answers import Answer, chat_chunk, chat_response, completion_chunk, completion_response
from executors.serving.batching import Batcher, Generated, Work
from executors.serving.constrained import Grammars
from executors.serving.prompts import Prompts
from executors.serving.requests import ChatRequest, CompletionRequest, Generation, known_part
from executors.serving.tools import calls_in, schema_of
from mloc_dagster.spec.base import Json

Model = TypeVar("Model", bound=Generation)
_DISCONNECT_SECONDS = 0.2


def engine_app(batcher: Batcher, grammars: Grammars, model: str, token: str) -> Bearer:
    """The application: `/health`, `/tokenize`, `/v1/models`, `/v1/completions`, `/v1/chat/completions` and adapters."""
    routes = _Routes(batcher, grammars, model)
    app = Starlette(
        routes=[
            Route("/health", routes.health),
            Route("/v1/models", routes.models),
            Route("/v1/completions", _guarded(routes.completions), methods=["POST"]),
            Route("/v1/chat/completions", _guarded(routes.chat), methods=["POST"]),
            Route("/v1/load_lora_adapter", _guarded(routes.load_adapter), methods=["POST"]),
            Route("/tokenize", _guarded(routes.tokenize), methods=["POST"]),
        ]
    )
    return Bearer(app, token)


class _Routes:
    def __init__(self, batcher: Batcher, grammars: Grammars, model: str) -> None:
        engine = batcher.engine
        self._batcher = batcher
        self._engine = engine
        self._model = model
        self._prompts = Prompts(engine.tokenizer, engine.context)
        self._grammars = grammars
        self._adapters: dict[str, tuple[str, ...]] = {model: ()}
        self._started = int(time.time())

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        entries = [
            {"id": name, "object": "model", "created": self._started, "owned_by": "mloc",
             "max_model_len": self._engine.context}
            for name in self._adapters
        ]  # fmt: skip
        return JSONResponse({"object": "list", "data": entries})

    async def completions(self, request: Request, body: dict[str, Json]) -> Response:
        asked = CompletionRequest.model_validate(body)
        adapters, sampling = self._named(asked.model), asked.sampling(asked.max_tokens)
        prompts = self._prompts.plain(asked.prompt)
        work = [
            Work(Draft(prompt, sampling.seed_of(row), draw, asked.max_tokens), sampling, adapters)
            for row, prompt in enumerate(prompts)
            for draw in range(asked.n)
        ]
        answer = Answer.new("cmpl", asked.model or self._model, sum(map(len, prompts)))
        if asked.stream:
            return self._stream(request, asked, work, answer, completion_chunk)
        found = await self._generated(request, work)
        return JSONResponse(completion_response(answer, found, with_ids=asked.return_token_ids))

    async def chat(self, request: Request, body: dict[str, Json]) -> Response:
        asked = ChatRequest.model_validate(body)
        adapters, schema = self._named(asked.model), schema_of(asked)
        prompt = self._prompts.chat(asked)
        room = (self._engine.context or 1 << 20) - len(prompt)
        limit = min(asked.max_completion_tokens or asked.max_tokens or room, room)
        grammar = None if schema is None else self._grammars.compile(schema)
        if grammar and grammar.shortest > limit:
            raise ExecutorError(
                f"The shortest answer that follows the schema has {grammar.shortest} tokens, the limit is {limit}.",
                "Raise max_tokens.",
            )
        sampling = asked.sampling(limit)
        work = [
            Work(Draft(prompt, sampling.seed_of(0), draw, limit), sampling, adapters, grammar)
            for draw in range(asked.n)
        ]
        answer = Answer.new("chatcmpl", asked.model or self._model, len(prompt))
        if asked.stream and not (asked.tools and asked.choice != "none"):
            return self._stream(request, asked, work, answer, chat_chunk)
        found = await self._generated(request, work)
        texts = [calls_in(one.completion.text, asked) for one in found]
        whole = chat_response(answer, found, texts)
        return _at_once(answer, whole, asked) if asked.stream else JSONResponse(whole)

    async def load_adapter(self, request: Request, body: dict[str, Json]) -> Response:
        """`{lora_name, lora_path}`; several paths under one name add up."""
        name, paths = str(body["lora_name"]), body["lora_path"]
        if name not in self._adapters:
            folders = [paths] if isinstance(paths, str) else list(paths)
            key = f"lora_{hashlib.sha256(name.encode()).hexdigest()[:12]}"  # PEFT takes no dots in a name
            await asyncio.wrap_future(self._batcher.add_adapters(key, list(map(_adapter, folders))))
            self._adapters[name] = tuple(f"{key}_{number}" for number in range(len(folders)))
        return JSONResponse({"status": "ok"})

    async def tokenize(self, request: Request, body: dict[str, Json]) -> Response:
        """Token ids of `prompt` (a text or several), or of `messages` through the chat template."""
        if "messages" in body:
            tokens = self._prompts.conversation(body["messages"])
            return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": self._engine.context})
        special, prompt = bool(body.get("add_special_tokens", True)), body["prompt"]
        ids = self._engine.tokenizer(prompt, add_special_tokens=special)["input_ids"]
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": self._engine.context})

    def _named(self, model: str | None) -> tuple[str, ...]:
        if model is None:
            return ()
        if model not in self._adapters:
            known = ", ".join(self._adapters)
            raise _NotFound(f"The model {model!r} is not served here; those that are: {known}.")
        return self._adapters[model]

    async def _generated(self, request: Request, work: Sequence[Work]) -> list[Generated]:
        """The finished drafts; they are given up when the client has gone."""
        self._batcher.submit(work)
        futures = [asyncio.wrap_future(one.done) for one in work]
        try:
            while True:
                _, open_ones = await asyncio.wait(futures, timeout=_DISCONNECT_SECONDS)
                if not open_ones:
                    return [future.result() for future in futures]
                if await request.is_disconnected():
                    raise asyncio.CancelledError
        finally:
            for one in work:
                one.given_up.set()

    def _stream(
        self, request: Request, asked: Generation, work: list[Work], answer: Answer,
        chunk: Callable[[Answer, int, str | None, str | None], dict[str, Json]],
    ) -> Response:  # fmt: skip
        loop = asyncio.get_running_loop()
        steps: asyncio.Queue[tuple[int, list[int] | None]] = asyncio.Queue()

        def teller(index: int) -> Callable[[list[int]], None]:
            return lambda tokens: loop.call_soon_threadsafe(steps.put_nowait, (index, list(tokens))) and None

        for index, one in enumerate(work):
            one.emit = teller(index)
            one.done.add_done_callback(lambda _, at=index: loop.call_soon_threadsafe(steps.put_nowait, (at, None)))
        self._batcher.submit(work)
        return StreamingResponse(self._events(asked, work, answer, chunk, steps), media_type="text/event-stream")

    async def _events(
        self, asked: Generation, work: list[Work], answer: Answer,
        chunk: Callable[[Answer, int, str | None, str | None], dict[str, Json]],
        steps: asyncio.Queue[tuple[int, list[int] | None]],
    ) -> AsyncIterator[str]:  # fmt: skip
        sent, made = [""] * len(work), 0
        try:
            for index in range(len(work)):
                yield _event(chunk(answer, index, "", None))
            ended = 0
            while ended < len(work):
                index, tokens = await steps.get()
                stop = work[index].sampling.stop
                if tokens is not None:
                    text = _settled(self._engine.completion(tokens, stop).text, stop)
                    if len(text) > len(sent[index]):
                        yield _event(chunk(answer, index, text[len(sent[index]) :], None))
                        sent[index] = text
                    continue
                ended += 1
                completion = work[index].done.result().completion
                made += completion.tokens
                rest = completion.text[len(sent[index]) :]
                if rest:
                    yield _event(chunk(answer, index, rest, None))
                yield _event(chunk(answer, index, None, completion.finish_reason))
            if asked.stream_options and asked.stream_options.include_usage:
                yield _event({**chunk(answer, 0, None, None), "choices": [], "usage": answer.usage(made)})
            yield "data: [DONE]\n\n"
        except Exception as error:
            yield _event({"error": {"message": f"{type(error).__name__}: {error}", "type": "server_error"}})
        finally:
            for one in work:
                one.given_up.set()


class _NotFound(Exception):
    """A model that is not served here."""


def _guarded(route: Callable[[Request, dict[str, Json]], Awaitable[Response]]) -> Callable:
    """Read the JSON body, and turn faults of the client into the protocol's errors."""

    async def endpoint(request: Request) -> Response:
        try:
            return await route(request, known_part(await request.json()))
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            at = ".".join(map(str, fault["loc"]))
            return _error(400, f"{at}: {fault['msg']} (value: {fault['input']!r:.80})")
        except ExecutorError as error:
            return _error(400, f"{error.what} {error.hint}".strip())
        except _NotFound as error:
            return _error(404, str(error))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return _error(400, f"The request cannot be understood: {type(error).__name__}: {error}")

    return endpoint


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error", "code": status}}, status)


def _event(value: Json) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _settled(text: str, stop: Sequence[str]) -> str:
    """The part of a growing text that cannot change any more: no broken character, no beginning of a stop text."""
    text = text.rstrip("\ufffd")
    for size in range(min(max(map(len, stop), default=0), len(text)), 0, -1):
        if any(mark.startswith(text[-size:]) for mark in stop):
            return text[:-size]
    return text


def _at_once(answer: Answer, whole: dict[str, Json], asked: ChatRequest) -> Response:
    """A stream of an answer that could not be told before it was whole: one that may hold tool calls."""

    async def events() -> AsyncIterator[str]:
        for choice in whole["choices"]:
            index, message = choice["index"], choice["message"]
            delta = {"role": "assistant", "content": message["content"]}
            if message.get("tool_calls"):
                delta["tool_calls"] = [{"index": at, **call} for at, call in enumerate(message["tool_calls"])]
            first = chat_chunk(answer, index, None, None)
            first["choices"][0]["delta"] = delta
            yield _event(first)
            yield _event(chat_chunk(answer, index, None, choice["finish_reason"]))
        if asked.stream_options and asked.stream_options.include_usage:
            yield _event({**chat_chunk(answer, 0, None, None), "choices": [], "usage": whole["usage"]})
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


def _adapter(folder: str) -> RuntimeAdapter:
    from pathlib import Path

    return RuntimeAdapter(uuid.uuid4().hex[:8], Path(folder))
