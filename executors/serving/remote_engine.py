"""An engine behind an endpoint, used like one in this process: same token ids in, same texts out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Literal

import requests
from requests.adapters import HTTPAdapter

from executors.base import ExecutorError, Interrupted
from executors.context import TaskContext
from executors.inference.engine import Completion, Finished, Sampling, Weights
from executors.messages import Message
from executors.serving.engines import Lease
from executors.weights import WeightsDigest
from mloc_dagster.spec.base import Json

_AT_ONCE = 64
"""Requests that vLLM gets at once; it makes batches of them itself."""
_MOST_REPLACED = 3
"""Engines that may die one after the other without answering anything."""
_DYING_SECONDS = 10.0
_POLL_SECONDS = 0.2

Ask = Callable[[str, dict[str, Json]], dict[str, Json]]
"""POST a body to a path of an engine and return what it told."""


class EngineGone(Exception):
    """The engine did not answer."""


@dataclass(frozen=True)
class _Rows:
    """Prompts that go in one request: rows from `start` on without a gap, so that each gets its own seed."""

    start: int
    prompts: Sequence[list[int]]


class RemoteEngine:
    """A lease with the methods of an engine. An engine that dies is replaced, and what it has answered stays."""

    def __init__(self, ctx: TaskContext, weights: Weights, used: WeightsDigest) -> None:
        self._stop = ctx.stop
        self._session = requests.Session()
        self._session.mount("http://", HTTPAdapter(pool_maxsize=_AT_ONCE))
        self._lease = Lease(ctx, weights, used)
        self.name: str = self._lease.spec.kind
        self.warnings = list(self._lease.warnings)
        self.context = self._lease.state.context
        self.tokenizer = RemoteTokenizer(self._ask, self._lease.state.chat_template)
        self.start: Literal["warm", "cold"] = self._lease.endpoint.start
        self.seconds = self._lease.endpoint.seconds
        self.replaced = 0

    def generate(
        self, prompts: Mapping[int, list[int]], sampling: Sampling, finished: Finished
    ) -> dict[int, list[Completion]]:
        """Return `n` completions for each row."""
        found: dict[int, list[Completion]] = {}
        died = 0
        while len(found) < len(prompts):
            before = len(found)
            try:
                waiting = {row: prompt for row, prompt in prompts.items() if row not in found}
                self._answer(self._requests(waiting, sampling), sampling, found, finished)
            except EngineGone as error:
                died = 1 if len(found) > before else died + 1
                self._replace(error, died)
        return found

    def _ask(self, path: str, body: dict[str, Json]) -> dict[str, Json]:
        """POST to the engine, or to its replacement when it has died."""
        for died in range(1, _MOST_REPLACED + 2):
            try:
                return ask(self._lease, path, body, self._session)
            except EngineGone as error:
                self._replace(error, died)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Give the engine back."""
        self._session.close()
        self._lease.close()

    def _requests(self, prompts: Mapping[int, list[int]], sampling: Sampling) -> list[_Rows]:
        """The prompts as requests; Transformers gets whole batches."""
        size = 1 if self.name == "vllm" else max(1, self._lease.spec.transformers.batch_size // sampling.n)
        runs = _without_gaps(sorted(prompts))
        batches = [run[first : first + size] for run in runs for first in range(0, len(run), size)]
        return [_Rows(rows[0], [prompts[row] for row in rows]) for rows in batches]

    def _answer(
        self, parts: list[_Rows], sampling: Sampling, found: dict[int, list[Completion]], finished: Finished
    ) -> None:
        pool = ThreadPoolExecutor(_AT_ONCE if self.name == "vllm" else 1, thread_name_prefix="ask")
        open_ones: dict[Future[list[list[Completion]]], _Rows] = {
            pool.submit(self._complete, part, sampling): part for part in parts
        }
        gone: EngineGone | None = None
        try:
            while open_ones:
                ended, _ = wait(open_ones, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                rows: dict[int, list[Completion]] = {}
                for future in ended:
                    part = open_ones.pop(future)
                    try:
                        rows.update(enumerate(future.result(), start=part.start))
                    except EngineGone as error:
                        gone = error
                if rows:
                    found |= rows
                    finished(rows)
                if self._stop.is_set():
                    raise Interrupted
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if gone is not None:
            raise gone

    def _complete(self, part: _Rows, sampling: Sampling) -> list[list[Completion]]:
        body = self._body(part, sampling)
        choices = ask(self._lease, "/v1/completions", body, self._session)["choices"]
        texts = [
            Completion(one["text"], "length" if one["finish_reason"] == "length" else "stop", _count(one))
            for one in sorted(choices, key=lambda one: one["index"])
        ]
        return [texts[first : first + sampling.n] for first in range(0, len(texts), sampling.n)]

    def _body(self, part: _Rows, sampling: Sampling) -> dict[str, Json]:
        limit = sampling.max_tokens
        if self.name == "vllm" and self.context:  # it refuses what Transformers cuts
            limit = min(limit, self.context - len(part.prompts[0]))
        body: dict[str, Json] = {
            "model": self._lease.endpoint.model, "prompt": list(part.prompts), "max_tokens": limit,
            "temperature": 0.0, "top_p": 1.0, "top_k": 0, "n": 1, "stop": list(sampling.stop),
            "repetition_penalty": sampling.repetition_penalty, "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty, "return_token_ids": True,
        }  # fmt: skip
        if not sampling.greedy:
            body |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
            body |= {"n": sampling.n, "seed": sampling.seed_of(part.start)}
        return body

    def _replace(self, error: EngineGone, died: int) -> None:
        """Get another engine for one that died; raises RuntimeError for one that lives and does not answer."""
        deadline = time.monotonic() + _DYING_SECONDS
        while not self._lease.died():
            if time.monotonic() > deadline:
                raise RuntimeError(f"the engine does not answer: {error}\n{self._lease.folder.log_tail()}") from error
            time.sleep(_POLL_SECONDS)
        if died > _MOST_REPLACED:
            raise RuntimeError(f"{died} engines died one after the other: {error}") from error
        self._lease.replace()
        self.replaced += 1


class RemoteTokenizer:
    """The engine's tokenizer, so that a stage with a warm engine imports neither torch nor transformers."""

    def __init__(self, ask: Ask, chat_template: bool) -> None:
        self._ask = ask
        self.chat_template = chat_template

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Return `input_ids` of a text."""
        body: dict[str, Json] = {"prompt": text, "add_special_tokens": add_special_tokens}
        return {"input_ids": self._ask("/tokenize", body)["tokens"]}

    def conversation_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the messages through the chat template, and the beginning of an answer."""
        return self._ask("/tokenize", {"messages": list(messages), "add_generation_prompt": True})["tokens"]


def ask(lease: Lease, path: str, body: dict[str, Json], session: requests.Session | None = None) -> dict[str, Json]:
    """POST to the engine of a lease; raises EngineGone when it does not answer, ExecutorError when it refuses."""
    endpoint = lease.endpoint
    url = endpoint.base_url.removesuffix("/v1") + path
    try:
        answer = (session or requests).post(url, json=body, headers={"Authorization": f"Bearer {endpoint.api_key}"})
        if answer.status_code >= 500:
            raise EngineGone(f"HTTP {answer.status_code}: {answer.text[:500]}")
        told = answer.json()
    except (requests.RequestException, ValueError) as error:
        raise EngineGone(f"{type(error).__name__}: {error}") from error
    if not answer.ok:
        error = told.get("error", told)
        raise ExecutorError(f"The engine refuses the request: {error.get('message', error)}")
    return told


def _without_gaps(rows: Sequence[int]) -> Iterator[list[int]]:
    """Runs of consecutive numbers."""
    run: list[int] = []
    for row in rows:
        if run and row != run[-1] + 1:
            yield run
            run = []
        run.append(row)
    if run:
        yield run


def _count(choice: dict[str, Json]) -> int:
    """Generated tokens of a choice, end token included."""
    return choice["tokens"] if "tokens" in choice else len(choice["token_ids"])
