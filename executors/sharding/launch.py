"""Run the shards of a stage in child processes: each begun, watched, and tried again alone."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import ClassVar, Protocol

from executors.attempt import OK, USER_FAULT, attempt, run_here
from executors.base import Executor, ExecutorError, Exhausted, Interrupted, Result
from executors.context import ProgressSink, TaskContext
from executors.distributed.layout import visible
from executors.parent import end_with_parent
from executors.prompts import PromptRows, prompt_rows
from executors.secrets import Secrets
from executors.sharding.child import in_child
from executors.sharding.layout import Layout, layout_of
from executors.sharding.merge import Shard, told_of
from executors.stopping import on_sigterm
from executors.weights import digest
from mloc_dagster.spec.inference import Postprocess
from mloc_dagster.spec.resources import Retry
from mloc_dagster.spec.stage import StageSpec

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 20.0
_LONGEST_BACKOFF_SECONDS = 120.0
_LOG_BYTES = 4096


class Sharded(Executor, Protocol):
    """An executor whose rows can be worked on apart."""

    shared_modules: ClassVar[tuple[str, ...]]
    """What shards use, imported once before they are forked; nothing that starts threads, such as torch."""

    @staticmethod
    def prepared(ctx: TaskContext) -> tuple[StageSpec, tuple[str, ...]]:
        """Do once what all shards need; returns the stage as they get it, and warnings. It runs in a child."""
        ...

    def merged(self, ctx: TaskContext, shards: Sequence[Shard]) -> Result:
        """The result that the unsharded work would have, from the results of its shards in order."""
        ...


def run_sharded(executor: type[Sharded], ctx: TaskContext, secrets: Secrets) -> Result:
    """Run a stage in shards and return their merged result.

    Raises ExecutorError for what a shard found wrong with the user's input, and when a shard failed as often as
    `retry.max_retries` lets it; Interrupted after a stop. What finished shards and rows gave is kept in every case.
    """
    source = in_child(prompt_rows, ctx)
    folder = ctx.out / ".cache" / "shards"
    layout = layout_of(ctx, source, folder)
    works = [_Work(index, rows, folder / str(index)) for index, rows in enumerate(layout.rows)]
    spec, warnings = in_child(executor.prepared, ctx)
    for module in executor.shared_modules:
        import_module(module)
    if ctx.model_path is not None and ctx.spec.checkpoint.load is None:
        digest(ctx.model_path)  # read once, and not by each shard
    gc.freeze()  # a collection in a shard would touch, and so copy, all that it has of this process
    try:
        _Crew(executor, replace(ctx, spec=spec), secrets, layout, works).work()
    finally:
        gc.unfreeze()
    shards = [work.shard() for work in works]
    result = executor().merged(ctx, shards)
    payload = {**result.payload, "shards": told_of(shards)}
    metadata = {**result.metadata, "warnings": list(dict.fromkeys([*warnings, *result.metadata["warnings"]]))}
    return result.model_copy(update={"payload": payload, "metadata": metadata})


@dataclass
class _Work:
    """One shard: its rows and folder, and how far it is."""

    index: int
    rows: PromptRows
    folder: Path
    process: BaseProcess | None = None
    place: int = -1
    failures: int = 0
    not_before: float = 0.0
    fault: str = field(default="")

    @property
    def done(self) -> bool:
        return (self.folder / "result.json").is_file()

    @property
    def attempts(self) -> int:
        """Attempts that were begun, those of earlier runs of the stage included."""
        path = self.folder / "attempts"
        return path.stat().st_size if path.exists() else 0

    def count_attempt(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "attempts").open("a") as file:
            file.write(".")

    def finished_rows(self) -> int:
        """Rows that are finished, as the shard told last."""
        if self.done:
            return len(self.rows.rows)
        try:
            lines = (self.folder / "logs" / "progress.jsonl").read_text("utf-8").splitlines()
            return int(json.loads(lines[-1])["done"])
        except (OSError, ValueError, LookupError):
            return 0

    def shard(self) -> Shard:
        result = Result.model_validate_json((self.folder / "result.json").read_text("utf-8"))
        return Shard(self.index, len(self.rows.rows), self.attempts, self.folder, result)


class _Crew:
    """The shards of a stage that is running."""

    def __init__(
        self, executor: type[Sharded], ctx: TaskContext, secrets: Secrets, layout: Layout, works: list[_Work]
    ) -> None:
        self._executor, self._ctx, self._secrets, self._layout, self._works = executor, ctx, secrets, layout, works
        self._fork = multiprocessing.get_context("fork")
        self._retry: Retry = ctx.spec.retry

    def work(self) -> None:
        """Return when all shards are done."""
        waiting = [work for work in self._works if not work.done]
        running: list[_Work] = []
        try:
            while waiting or running:
                if self._ctx.stop.is_set():
                    raise Interrupted
                for work in self._ready(waiting, running):
                    waiting.remove(work)
                    running.append(work)
                    self._begin(work)
                self._report()
                wait([work.process.sentinel for work in running if work.process], timeout=_POLL_SECONDS)
                for work in [work for work in running if work.process and not work.process.is_alive()]:
                    running.remove(work)
                    if self._ended(work):
                        waiting.append(work)
        finally:
            _end(running)
        self._report()
        _raise_for([work for work in self._works if work.fault], len(self._works))

    def _ready(self, waiting: list[_Work], running: list[_Work]) -> list[_Work]:
        """Shards that begin now, each given a free place."""
        taken = {work.place for work in running}
        free = [place for place in range(len(self._layout.places)) if place not in taken]
        now = time.monotonic()
        ready = [work for work in waiting if work.not_before <= now][: len(free)]
        for work, place in zip(ready, free, strict=False):
            work.place = place
        return ready

    def _begin(self, work: _Work) -> None:
        work.count_attempt()
        devices = self._layout.places[work.place]
        ctx = replace(
            self._ctx,
            rows=work.rows,
            out=work.folder,
            devices=devices,
            spec=self._ctx.spec.model_copy(update={"postprocess": Postprocess()}),  # the merged items are exported
            progress=ProgressSink(work.folder / "logs" / "progress.jsonl"),
            stop=threading.Event(),
        )
        log = self._ctx.out / "logs" / f"shard-{work.index}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        arguments = (self._executor, ctx, self._secrets, log, self._layout.threads)
        process = self._fork.Process(target=_work, args=arguments, name=f"shard {work.index}")
        process.start()
        work.process = process

    def _ended(self, work: _Work) -> bool:
        """Look at how a shard ended; returns whether it is to be tried again."""
        assert work.process is not None
        code = work.process.exitcode
        work.process.close()
        work.process = None
        if code == OK and work.done:
            return False
        if self._ctx.stop.is_set():
            raise Interrupted
        error = _error(work.folder)
        if code == USER_FAULT and error:
            raise ExecutorError(error["message"], error["hint"])
        work.failures += 1
        cause = error.get("message") or f"was killed by signal {-(code or 0)} (out of memory, or killed from outside)"
        print(f"shard {work.index}, attempt {work.attempts}: {cause}", file=sys.stderr)
        if work.failures > self._retry.max_retries:
            work.fault = f"{cause}\n{_tail(self._ctx.out / 'logs' / f'shard-{work.index}.log')}".strip()
            return False
        work.not_before = time.monotonic() + min(_LONGEST_BACKOFF_SECONDS, self._retry.backoff * work.failures)
        return True

    def _report(self) -> None:
        rows = sum(len(work.rows.rows) for work in self._works)
        self._ctx.progress.update(sum(work.finished_rows() for work in self._works), rows, "rows")


def _work(executor: type[Sharded], ctx: TaskContext, secrets: Secrets, log: Path, threads: int | None) -> None:
    """What a child does; it ends with the stage's process, and a signal to their group stops it softly."""
    end_with_parent(signal.SIGKILL)
    on_sigterm(ctx.stop.set)
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    if ctx.devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible(ctx.devices)
    if threads is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    (ctx.out / "error.json").unlink(missing_ok=True)

    def hidden() -> Result:
        return Result.model_validate(secrets.hide(run_here(executor, ctx).model_dump()))

    sys.exit(attempt(hidden, ctx.out, secrets, ctx.stop))


def _end(works: list[_Work]) -> None:
    """End shards that still run: softly, so that they close what they hold, and for certain."""
    processes = [work.process for work in works if work.process is not None]
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _raise_for(failed: list[_Work], count: int) -> None:
    """Raise Exhausted for shards that failed too often."""
    if not failed:
        return
    names = ", ".join(str(work.index) for work in failed)
    first = failed[0]
    raise Exhausted(
        f"Shard {names} of {count} failed {first.failures} times; shard {first.index}: {first.fault}",
        "The rows of the others are kept: run the task again, and only what is missing is done.",
    )


def _error(folder: Path) -> dict[str, str]:
    try:
        return json.loads((folder / "error.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _tail(path: Path) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LOG_BYTES))
        return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-20:])
