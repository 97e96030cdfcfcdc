"""All items of a stage: those that an earlier attempt finished are kept, the others are worked on."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from executors.agent.item import Studio, studio_of, work_on
from executors.agent.model import address_of
from executors.agent.settings import settings_of
from executors.agent.tools.index import searching
from executors.agent.trace import FAILED, ItemTrace, Trace
from executors.base import ExecutorError, Interrupted, Result
from executors.context import TaskContext
from executors.inference.postprocess import export_jsonl
from executors.prompts import PromptRow, prompt_rows
from executors.rag.sharing import Prepared, with_index
from executors.sharding.merge import Shard, merged_metadata, merged_usage
from mloc_dagster.files.atomic import write_text
from mloc_dagster.spec.agent import Agent, every_tool
from mloc_dagster.spec.base import Json

_LOOK_SECONDS = 0.2
_TRACE = Path("trace") / "steps.jsonl"


def run_batch(ctx: TaskContext) -> Result:
    """Work on all items and return the result of SPEC §12.

    Raises ExecutorError for faults of the settings and when every item failed with an error, Interrupted after a stop.
    """
    agent = settings_of(ctx)
    source = prompt_rows(ctx)
    trace = Trace(ctx.out / _TRACE, ctx.redact)
    started = time.monotonic()
    engine: dict[str, Json] = {}
    try:
        done = {row.index: kept for row in source.rows if (kept := trace.finished(row.index, row.prompt))}
        resumed = len(done)
        waiting = [row for row in source.rows if row.index not in done]
        ctx.progress.update(resumed, len(source.rows), "rows")
        if waiting:
            engine = _work(ctx, agent, waiting, trace, done)
    finally:
        trace.close()
    seconds = time.monotonic() - started
    items = [_item(ctx, row, done[row.index]) for row in source.rows]
    metadata = {**engine, "resumed": resumed, "tools": [tool.name for tool in every_tool(agent)],
                "warnings": [*source.warnings, *engine.get("warnings", [])]}  # fmt: skip
    return _result(ctx, items, _usage(done.values(), seconds), metadata)


def prepared(ctx: TaskContext) -> Prepared:
    """What shards get: the stage, with the index of its own documents where its agents search one."""
    return with_index(ctx) if _searches(settings_of(ctx)) else (ctx.spec, ())


def merged(ctx: TaskContext, shards: Sequence[Shard]) -> Result:
    """The result of all items; their folders and the steps of their traces come into the stage's own folder."""
    items = [_moved(ctx, shard, item) for shard in shards for item in shard.result.payload["items"]]
    steps = "".join((shard.folder / _TRACE).read_text("utf-8") for shard in shards)
    write_text(ctx.out / _TRACE, steps)
    resumed = sum(shard.result.metadata["resumed"] for shard in shards)
    return _result(ctx, items, merged_usage(shards), {**merged_metadata(shards), "resumed": resumed})


def _moved(ctx: TaskContext, shard: Shard, item: dict[str, Json]) -> dict[str, Json]:
    """Move the folder of an item out of its shard, also when an earlier attempt to merge has done so."""
    if "folder" not in item:
        return item
    there, here = Path(item["folder"]), ctx.out / Path(item["folder"]).relative_to(shard.folder)
    if there.is_dir():
        shutil.rmtree(here, ignore_errors=True)
        here.parent.mkdir(parents=True, exist_ok=True)
        there.rename(here)
    return {**item, "folder": str(here)}


def _result(
    ctx: TaskContext, items: list[dict[str, Json]], usage: dict[str, Json], metadata: dict[str, Json]
) -> Result:
    if ctx.rows is None:
        _check_some_worked(items)
    failed = sum(item["finish_reason"] in FAILED for item in items)
    summary = {"total_tasks": len(items), "completed": len(items) - failed, "failed": failed}
    payload: dict[str, Json] = {"ok": True, "items": items, "usage": usage, "metadata": {"batch_summary": summary}}
    export = ctx.spec.postprocess.jsonl_export
    if export is not None:
        payload["jsonl_export"] = export_jsonl(ctx, export, items)
    return Result(
        payload=payload,
        metrics={**summary, "latency_sec": usage["latency_sec"], "total_tokens": usage["total_tokens"]},
        metadata=metadata,
    )


def _searches(agent: Agent) -> bool:
    return any(tool.name == "rag_search" for tool in every_tool(agent))


def _work(
    ctx: TaskContext, agent: Agent, waiting: Sequence[PromptRow], trace: Trace, done: dict[int, ItemTrace]
) -> dict[str, Json]:
    """Work on the items and put their traces into `done`; returns what is told of the engine."""
    with ExitStack() as stack:
        search, warnings = stack.enter_context(searching(ctx)) if _searches(agent) else (None, ())
        address = stack.enter_context(address_of(ctx, agent))
        studio = studio_of(agent, ctx.spec.inference, address, search, ctx.out / "artifacts" / "items")
        _run(_all(ctx, studio, waiting, trace, done))
        started = {"model": address.name, "engine_start": address.start, "engine_start_sec": address.seconds}
        return {**started, "warnings": list(warnings)}


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end in a loop of its own, which does not wait for threads that were given up."""
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(work)
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


async def _all(
    ctx: TaskContext, studio: Studio, waiting: Sequence[PromptRow], trace: Trace, done: dict[int, ItemTrace]
) -> None:
    places = asyncio.Semaphore(studio.agent.concurrency)
    total = len(waiting) + len(done)

    async def one(row: PromptRow) -> None:
        async with places:
            item = trace.start(row.index, row.prompt)
            await work_on(studio, row, item)
            done[row.index] = item

    pending = {asyncio.create_task(one(row)) for row in waiting}
    while pending:
        finished, pending = await asyncio.wait(pending, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for task in finished:
            task.result()
        if finished:
            ctx.progress.update(len(done), total, "rows")
        if ctx.stop.is_set() and pending:
            for task in pending:
                task.cancel()
            await asyncio.wait(pending)
            raise Interrupted


def _item(ctx: TaskContext, row: PromptRow, trace: ItemTrace) -> dict[str, Json]:
    outcome = trace.outcome
    assert outcome is not None, row.index
    folder = _folder(ctx, row.index)
    item: dict[str, Json] = {
        "index": row.index,
        "prompt": row.prompt,
        "output": outcome.output,
        "finish_reason": outcome.finish_reason,
        "steps": trace.steps,
        "seconds": outcome.seconds,
        "metadata": row.metadata,
    }
    return item | ({"error": outcome.error} if outcome.error else {}) | ({"folder": str(folder)} if folder else {})


def _folder(ctx: TaskContext, index: int) -> Path | None:
    """The folder with the files that the agent made for an item."""
    folder = ctx.out / "artifacts" / "items" / f"{index:06d}"
    return folder if folder.is_dir() else None


def _check_some_worked(items: Sequence[dict[str, Json]]) -> None:
    if all(item["finish_reason"] == "error" for item in items):
        first = items[0]["error"]
        raise ExecutorError(
            f"All {len(items)} items failed; the first one with: {first}",
            "Mend this and run the task again; steps are in trace/steps.jsonl.",
        )


def _usage(traces: Any, seconds: float) -> dict[str, Json]:
    calls = [step for trace in traces for step in trace.steps if step["type"] == "model"]
    given = sum(call["prompt_tokens"] or 0 for call in calls)
    made = sum(call["completion_tokens"] or 0 for call in calls)
    return {
        "prompt_tokens": given,
        "completion_tokens": made,
        "total_tokens": given + made,
        "latency_sec": seconds,
        "num_requests": len(calls),
    }
