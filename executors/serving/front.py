"""What stands before an engine in a serve stage: its users' token, the stage's defaults, and passages of an index."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from executors.base import ExecutorError
from executors.context import TaskContext
from executors.serving.access import Bearer
from executors.serving.engines import Lease
from executors.serving.grounding import Grounded, Grounding
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.inference import Inference

_SAMPLING = (
    "max_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "stop", "seed", "n",
)  # fmt: skip
_SECONDS = 3600.0


class Front:
    """The application of a serve stage. Requests go to whatever engine the lease has at that moment."""

    def __init__(self, ctx: TaskContext, lease: Lease, key: str, model: str) -> None:
        self.model = model
        self.requests = 0
        self.replaced = 0
        self._lease = lease
        self._defaults = defaults_of(ctx.spec.inference)
        self._system = ctx.spec.inference.system_prompt
        self._last = time.monotonic()
        self._open = 0
        self._client = httpx.AsyncClient(timeout=httpx.Timeout(_SECONDS, connect=5.0))
        asks_index = ctx.spec.rag.embedding is not None
        self._grounding = Grounding(ctx, lease) if asks_index else None
        self.warnings = list(self._grounding.warnings) if self._grounding else []
        routes = [
            Route("/health", self._health),
            Route("/v1/models", self._models),
            Route("/v1/completions", self._counted(self._completions), methods=["POST"]),
            Route("/v1/chat/completions", self._counted(self._chat), methods=["POST"]),
        ]
        self.app = Bearer(Starlette(routes=routes), key)

    def idle_seconds(self) -> float:
        """Since when no request is being answered."""
        return 0.0 if self._open else time.monotonic() - self._last

    def close(self) -> None:
        """Close the index behind the chats, when there is one."""
        if self._grounding is not None:
            self._grounding.close()

    async def _health(self, request: Request) -> Response:
        dead = self._lease.died()
        return JSONResponse({"status": "engine is being replaced" if dead else "ok"}, 503 if dead else 200)

    async def _models(self, request: Request) -> Response:
        entry = {"id": self.model, "object": "model", "created": 0, "owned_by": "mloc"}
        return JSONResponse({"object": "list", "data": [entry | {"max_model_len": self._lease.state.context}]})

    def _counted(self, route: Callable[[dict[str, Json]], Awaitable[Response]]) -> Callable:
        async def endpoint(request: Request) -> Response:
            self.requests += 1
            self._open += 1
            try:
                body = await request.json()
                if body.get("model") not in (None, self.model):
                    return _error(404, f"The model {body['model']!r} is not served here; {self.model!r} is.")
                return await route({**self._defaults, **body, "model": self._lease.endpoint.model})
            except ExecutorError as error:
                return _error(400, f"{error.what} {error.hint}".strip())
            except (ValueError, AttributeError, KeyError, TypeError) as error:
                return _error(400, f"The request cannot be understood: {error}")
            except httpx.HTTPError as error:
                return _error(503, f"The engine does not answer and is being replaced: {error!r}. Try again.")
            finally:
                self._open -= 1
                self._last = time.monotonic()

        return endpoint

    async def _completions(self, body: dict[str, Json]) -> Response:
        return await self._passed("/completions", body, None)

    async def _chat(self, body: dict[str, Json]) -> Response:
        messages = list(body["messages"])
        if "max_completion_tokens" in body:
            body.pop("max_tokens", None)
        if self._grounding is not None:
            grounded = await run_in_threadpool(self._grounding.ground, messages, body)
            return await self._passed("/chat/completions", {**body, "messages": grounded.messages}, grounded)
        if self._system and messages and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self._system})
        return await self._passed("/chat/completions", {**body, "messages": messages}, None)

    async def _passed(self, path: str, body: dict[str, Json], grounded: Grounded | None) -> Response:
        endpoint = self._lease.endpoint
        headers = {"Authorization": f"Bearer {endpoint.api_key}"}
        if not body.get("stream"):
            answer = await self._client.post(endpoint.base_url + path, json=body, headers=headers)
            told = _named(answer.json(), self.model)
            return JSONResponse(_cited(told, grounded) if answer.is_success else told, answer.status_code)
        request = self._client.build_request("POST", endpoint.base_url + path, json=body, headers=headers)
        answer = await self._client.send(request, stream=True)
        if not answer.is_success:
            told = json.loads(await answer.aread())
            return JSONResponse(told, answer.status_code)
        return StreamingResponse(self._streamed(answer, grounded), media_type="text/event-stream")

    async def _streamed(self, answer: httpx.Response, grounded: Grounded | None) -> AsyncIterator[str]:
        texts: dict[int, str] = {}
        self._open += 1
        try:
            async for line in answer.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    for index, text in texts.items():
                        if grounded is not None:
                            yield _event(_context_chunk(index, grounded.context(text), self.model))
                    yield f"{line}\n\n"
                    continue
                chunk = _named(json.loads(line.removeprefix("data: ")), self.model)
                for choice in chunk.get("choices", ()):
                    told = (choice.get("delta") or {}).get("content") or ""
                    texts[choice["index"]] = texts.get(choice["index"], "") + told
                yield _event(chunk)
        except httpx.HTTPError as error:
            yield _event({"error": {"message": f"The engine ended: {error!r}", "type": "server_error"}})
        finally:
            await answer.aclose()
            self._open -= 1
            self._last = time.monotonic()


def defaults_of(inference: Inference) -> dict[str, Json]:
    """What a request gets that says nothing itself: the sampling settings that the task file gives."""
    given = {name: getattr(inference, name) for name in _SAMPLING if name in inference.model_fields_set}
    if inference.do_sample is False:
        given["temperature"] = 0.0
    return {name: value for name, value in given.items() if value is not None and value != []}


def _named(told: dict[str, Json], model: str) -> dict[str, Json]:
    """The answer with the name by which users know the model."""
    return {**told, "model": model} if "model" in told else told


def _cited(told: dict[str, Json], grounded: Grounded | None) -> dict[str, Json]:
    if grounded is None:
        return told
    for choice in told["choices"]:
        choice["message"]["context"] = grounded.context(choice["message"].get("content") or "")
    return told


def _context_chunk(index: int, context: dict[str, Json], model: str) -> dict[str, Json]:
    choice = {"index": index, "delta": {"context": context}, "finish_reason": None}
    return {"object": "chat.completion.chunk", "model": model, "choices": [choice]}


def _error(status: int, message: str) -> Response:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return JSONResponse({"error": {"message": message, "type": kind, "code": status}}, status)


def _event(value: Json) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
