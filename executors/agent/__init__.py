"""Agents: a model that calls tools, over a list of prompts; one item's end does not end the others."""

from __future__ import annotations

from collections.abc import Sequence

from executors.base import Result
from executors.context import TaskContext
from executors.rag.retrieval import RETRIEVAL_USES
from executors.sharding.merge import Shard
from mloc_dagster.spec.stage import StageSpec

_MODEL = (
    "model.source.*", "model.config.*", "model.adapters", "model.vllm.*", "model.transformers.*", "checkpoint.*",
    "enforce_cpu",
)  # fmt: skip
_SAMPLING = (
    "system_prompt", "prompts", "max_tokens", "temperature", "top_p", "top_k", "do_sample", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "stop", "seed",
)  # fmt: skip

_OF_RETRIEVAL = frozenset({"rag.expected_field", "rag.min_hit_rate", "rag.min_mrr"})


class AgentExecutor:
    """`agent`: works on each prompt with a model that calls tools."""

    name = "agent"
    inline = False
    uses = (RETRIEVAL_USES - _OF_RETRIEVAL) | {
        *_MODEL,
        *(f"inference.{key}" for key in _SAMPLING),
        "agent.*",
        "postprocess.*",
    }
    section = None
    shared_modules = ("executors.agent.batch",)

    @staticmethod
    def prepared(ctx: TaskContext) -> tuple[StageSpec, tuple[str, ...]]:
        """Shards get the index of the stage's own documents."""
        from executors.agent.batch import prepared

        return prepared(ctx)

    def merged(self, ctx: TaskContext, shards: Sequence[Shard]) -> Result:
        """The result that the items of all shards have together."""
        from executors.agent.batch import merged

        return merged(ctx, shards)

    def run(self, ctx: TaskContext) -> Result:
        """Work on all items. Raises ExecutorError for faults of the settings, and when every item failed."""
        from executors.agent.batch import run_batch

        return run_batch(ctx)


class AgentInferenceExecutor(AgentExecutor):
    """`agent_inference`: the same as `agent`."""

    name = "agent_inference"
