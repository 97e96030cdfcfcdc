"""Drafts that arrive together are generated together, on one thread that owns the model."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from executors.inference.adapters import RuntimeAdapter
from executors.inference.engine import Completion, Draft, Sampling
from executors.inference.transformers_engine import TransformersEngine
from executors.serving.constrained import Grammar, Grammars

_TOGETHER_SECONDS = 0.01
"""How long the first draft of a batch waits for others."""


@dataclass(frozen=True)
class Generated:
    """A finished draft."""

    completion: Completion
    tokens: list[int]


@dataclass
class Work:
    """A draft that waits or is being generated."""

    draft: Draft
    sampling: Sampling
    adapters: tuple[str, ...] = ()
    grammar: Grammar | None = None
    emit: Callable[[list[int]], None] | None = None
    """Gets all tokens so far after each step; called on the model's thread."""
    done: Future[Generated] = field(default_factory=Future)
    given_up: threading.Event = field(default_factory=threading.Event)

    @property
    def kind(self) -> tuple[Sampling, tuple[str, ...]]:
        """Drafts of one kind can be in one batch: seeds and limits are a draft's own."""
        return replace(self.sampling, seed=None, max_tokens=0, n=1), self.adapters


class Batcher:
    """Owns the model: one thread generates batch after batch of what waits."""

    def __init__(self, engine: TransformersEngine, grammars: Grammars) -> None:
        self.engine = engine
        self._grammars = grammars
        self._arriving: queue.SimpleQueue[list[Work]] = queue.SimpleQueue()
        self._waiting: list[Work] = []
        self._errands: deque[tuple[Future[None], str, Sequence[RuntimeAdapter]]] = deque()
        threading.Thread(target=self._run, name="generate", daemon=True).start()

    def submit(self, work: Sequence[Work]) -> None:
        """Take drafts; their futures get the texts or the error."""
        self._arriving.put(list(work))

    def add_adapters(self, name: str, adapters: Sequence[RuntimeAdapter]) -> Future[None]:
        """Load adapters between two batches, as `<name>_0`, `<name>_1` and so on."""
        done: Future[None] = Future()
        self._errands.append((done, name, adapters))
        self._arriving.put([])
        return done

    def _run(self) -> None:
        while True:
            self._collect()
            self._run_errands()
            batch = self._take()
            if not batch:
                continue
            try:
                self._generate(batch)
            except Exception as error:  # one bad batch must not end the engine
                for work in batch:
                    if not work.done.done():
                        work.done.set_exception(error)

    def _run_errands(self) -> None:
        while self._errands:
            done, name, adapters = self._errands.popleft()
            try:
                for number, adapter in enumerate(adapters):
                    self.engine.add_adapter(f"{name}_{number}", adapter)
                done.set_result(None)
            except Exception as error:  # told to whoever asked
                done.set_exception(error)

    def _collect(self) -> None:
        if not self._waiting:
            self._waiting += self._arriving.get()
            time.sleep(_TOGETHER_SECONDS)
        while not self._arriving.empty():
            self._waiting += self._arriving.get()

    def _take(self) -> list[Work]:
        """The next batch: drafts like the one that has waited longest."""
        self._waiting = [work for work in self._waiting if not _dropped(work)]
        if not self._waiting:
            return []
        kind = self._waiting[0].kind
        batch = [work for work in self._waiting if work.kind == kind][: self.engine.batch_size]
        taken = set(map(id, batch))
        self._waiting = [work for work in self._waiting if id(work) not in taken]
        return batch

    def _generate(self, batch: list[Work]) -> None:
        drafts = [work.draft for work in batch]
        limits = [self.engine.limit(draft) for draft in drafts]
        width = max(len(draft.prompt) for draft in drafts)
        mask = self._grammars.mask([work.grammar for work in batch], limits, width)
        with self.engine.applied(batch[0].adapters):
            rows = self.engine.batch(drafts, batch[0].sampling, watch=_watch(batch, limits), mask=mask)
        for work, tokens in zip(batch, rows, strict=True):
            work.done.set_result(Generated(self.engine.completion(tokens, work.sampling.stop), tokens))


def _watch(batch: Sequence[Work], limits: Sequence[int]) -> Callable[[list[list[int]]], list[bool]]:
    def watch(rows: list[list[int]]) -> list[bool]:
        for work, tokens, limit in zip(batch, rows, limits, strict=True):
            if work.emit is not None and len(tokens) <= limit:
                work.emit(tokens)
        return [len(rows[0]) >= limit or work.given_up.is_set() for work, limit in zip(batch, limits, strict=True)]

    return watch


def _dropped(work: Work) -> bool:
    if work.given_up.is_set():
        work.done.cancel()
    return work.given_up.is_set()
