"""Agents: a model that calls tools, over a list of prompts; one item's end does not end the others."""

from __future__ import annotations

from executors.base import Result
from executors.context import TaskContext
from executors.rag.retrieval import RETRIEVAL_USES

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

    def run(self, ctx: TaskContext) -> Result:
        """Work on all items. Raises ExecutorError for faults of the settings, and when every item failed."""
        from executors.agent.batch import run_batch

        return run_batch(ctx)


class AgentInferenceExecutor(AgentExecutor):
    """`agent_inference`: the same as `agent`."""

    name = "agent_inference"
