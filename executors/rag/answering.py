"""`rag_inference`: finds passages and generates an answer from them, with citations."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from executors.base import ExecutorError, Result
from executors.context import TaskContext
from executors.inference import engine_start, load_engine, usage_of, weights_of
from executors.inference.chat import tokenize
from executors.inference.engine import Completion, Sampling, sampling_of
from executors.inference.finished_rows import generate_rows
from executors.inference.postprocess import export_jsonl
from executors.prompts import PromptRow
from executors.rag.metrics import verdict
from executors.rag.retrieval import RETRIEVAL_USES, Retrieved, quality, retrieve, write_queries
from executors.rag.search import Hit
from executors.rag.sharing import Prepared, with_index
from executors.sharding.merge import Shard, merged_metadata, merged_usage
from mloc_dagster.spec.base import Json

_ENGINE_USES = frozenset({
    "model.source.*", "model.config.fp16", "model.config.bf16", "model.adapters", "model.vllm.*",
    "model.transformers.*", "inference.*", "postprocess.*", "enforce_cpu", "checkpoint.*", "rag.max_context_tokens",
})  # fmt: skip
SYSTEM = (
    "Answer the question from the numbered passages alone, and name the passages that you used, like [1]. "
    "If they do not hold the answer, say so."
)
_CITATION = re.compile(r"\[(\d+)\]")


@dataclass(frozen=True)
class Prompt:
    """A prompt with the passages that it holds: passage `[n]` is `passages[n - 1]`."""

    row: PromptRow
    tokens: list[int]
    passages: tuple[Hit, ...]


class AnsweringExecutor:
    """`rag_inference`: finds passages and generates an answer from them, with citations."""

    name = "rag_inference"
    inline = False
    uses = RETRIEVAL_USES | _ENGINE_USES
    loads_torch = True
    section = None
    shared_modules = ("executors.serving.remote_engine",)

    @staticmethod
    def prepared(ctx: TaskContext) -> Prepared:
        """Shards get the index of the stage's own documents."""
        return with_index(ctx)

    def run(self, ctx: TaskContext) -> Result:
        """Search, prompts within their budget, texts, citations."""
        sampling = sampling_of(ctx.spec.inference)
        found = retrieve(ctx)
        ctx.progress.update(0, len(found.rows), "rows")
        weights, used = weights_of(ctx)
        engine = load_engine(ctx, weights, used)
        try:
            prompts = _prompts(ctx, engine.tokenizer, engine.context, found, sampling)
            started = time.monotonic()
            tokens = {one.row.index: one.tokens for one in prompts}
            texts = generate_rows(ctx, engine, tokens, sampling, len(prompts))
            seconds = time.monotonic() - started
        finally:
            engine.close()
        queries = [
            _answered(query, hits, prompt, texts[prompt.row.index])
            for query, hits, prompt in zip(found.queries, found.hits, prompts, strict=True)
        ]
        write_queries(ctx, queries)
        payload: dict[str, Json] = {
            "ok": True, "queries": queries, "usage": usage_of(tokens, texts, seconds), "index_path": str(found.index),
        }  # fmt: skip
        metadata = {
            "engine": engine.name, "weights_digest": used.whole, "weights": list(used.parts), **engine_start(engine),
            "embedding_digest": found.meta.embedding_digest,
            "warnings": [*weights.warnings, *found.warnings, *engine.warnings],
        }  # fmt: skip
        return _result(ctx, payload, metadata, found.metrics, search_seconds=found.seconds)

    def merged(self, ctx: TaskContext, shards: Sequence[Shard]) -> Result:
        """The result that the queries of all shards have together."""
        queries = [query for shard in shards for query in shard.result.payload["queries"]]
        write_queries(ctx, queries)
        payload = {**shards[0].result.payload, "queries": queries, "usage": merged_usage(shards)}
        search_seconds = max(shard.result.metrics["search_sec"] for shard in shards)
        return _result(ctx, payload, merged_metadata(shards), quality(ctx, queries), search_seconds=search_seconds)


def _result(
    ctx: TaskContext, payload: dict[str, Json], metadata: dict[str, Json], quality: dict[str, float], *,
    search_seconds: float,
) -> Result:  # fmt: skip
    queries = payload["queries"]
    if quality:
        payload |= {"metrics": quality, "retrieval": verdict(quality, len(queries), ctx.spec.rag)}
    export = ctx.spec.postprocess.jsonl_export
    if export is not None:
        payload["jsonl_export"] = export_jsonl(ctx, export, [_as_item(query) for query in queries])
    seconds = payload["usage"]["latency_sec"]
    metrics = {"queries": len(queries), "latency_sec": seconds, "search_sec": search_seconds, **quality}
    return Result(payload=payload, metrics=metrics, metadata=metadata)


def _prompts(
    ctx: TaskContext, tokenizer: Any, context: int | None, found: Retrieved, sampling: Sampling
) -> list[Prompt]:
    system = ctx.spec.inference.system_prompt or SYSTEM
    room = None if context is None else context - sampling.max_tokens
    budget = ctx.spec.rag.max_context_tokens
    rows = zip(found.rows, found.queries, found.hits, strict=True)
    return [prompt_with(tokenizer, system, row, query, hits, budget, room) for row, query, hits in rows]


def prompt_with(
    tokenizer: Any, system: str, row: PromptRow, query: str, hits: Sequence[Hit], budget: int, room: int | None
) -> Prompt:
    """The prompt with as many of the best passages as fit `budget` tokens, and with the answer the model's context."""
    passages: list[Hit] = []
    spent = 0
    for hit in hits:
        spent += len(tokenizer(_passage(len(passages) + 1, hit), add_special_tokens=False)["input_ids"])
        if spent > budget:
            break
        passages.append(hit)
    while True:
        [tokens] = tokenize(tokenizer, [with_context(row, query, passages)], system, None)
        if room is None or len(tokens) <= room:
            break
        if not passages:
            raise ExecutorError(
                f"Query {row.index} has {len(tokens)} tokens with the system prompt; the model's context leaves {room} "
                "beside the answer.",
                "Shorten it, lower inference.max_tokens, or use a model with a longer context.",
            )
        passages.pop()
    if hits and not passages:
        raise ExecutorError(
            f"Query {row.index}: not even one passage fits rag.max_context_tokens {budget} and the model's context.",
            "Raise rag.max_context_tokens, lower rag.chunk_size or inference.max_tokens.",
        )
    return Prompt(row, tokens, tuple(passages))


def with_context(row: PromptRow, query: str, passages: Sequence[Hit]) -> PromptRow:
    """The row with the passages before its question; a conversation carries them in its last question."""
    context = "\n\n".join(_passage(number, hit) for number, hit in enumerate(passages, start=1))
    text = f"Passages:\n\n{context or 'none'}\n\nQuestion: {query}\nAnswer:"
    if isinstance(row.prompt, str):
        return PromptRow(row.index, text, row.metadata)
    last = max(place for place, turn in enumerate(row.prompt) if turn["role"] == "user")
    turns = [*row.prompt[:last], {**row.prompt[last], "content": text}, *row.prompt[last + 1 :]]
    return PromptRow(row.index, turns, row.metadata)


def _passage(number: int, hit: Hit) -> str:
    return f"[{number}] ({hit.chunk.document}) {hit.chunk.text}"


def _answered(query: str, hits: Sequence[Hit], prompt: Prompt, texts: Sequence[Completion]) -> dict[str, Json]:
    answer = texts[0].text
    found: dict[str, Json] = {
        "index": prompt.row.index,
        "query": query,
        "items": [hit.item() for hit in hits],
        "answer": answer,
        "finish_reason": texts[0].finish_reason,
        "citations": citations(answer, [hit.chunk.id for hit in prompt.passages]),
        "passages": [hit.chunk.id for hit in prompt.passages],
        "metadata": prompt.row.metadata,
    }
    if len(texts) > 1:
        found["answers"] = [text.text for text in texts]
    return found


def citations(answer: str, passages: Sequence[str]) -> list[Json]:
    """What an answer cites, as `{number, id}` in the order of its mentions; `id` is None for a number of no passage."""
    numbers = dict.fromkeys(int(number) for number in _CITATION.findall(answer))
    return [
        {"number": number, "id": passages[number - 1] if 0 < number <= len(passages) else None} for number in numbers
    ]


def _as_item(query: dict[str, Json]) -> dict[str, Json]:
    """The same as an item of inference, for the export."""
    carried = {name: query[name] for name in ("citations", "passages")}
    return {
        "index": query["index"],
        "prompt": query["query"],
        "output": query["answer"],
        "finish_reason": query["finish_reason"],
        "metadata": {**carried, **query["metadata"]},
    }
