"""One loop of model and tools, by LangChain's `create_agent`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelCallLimitMiddleware
from langchain.agents.middleware.model_call_limit import ModelCallLimitExceededError
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool

from executors.agent.middleware import DirectAnswer, FirstTool, Recorder
from executors.agent.trace import FinishReason, ItemTrace
from executors.messages import Message
from mloc_dagster.spec.agent import Tool


@dataclass(frozen=True)
class Part:
    """Who takes part: a role with its instructions, tools and limits."""

    role: str
    model: BaseChatModel
    instructions: str | None
    tools: Sequence[BaseTool] = ()
    settings: dict[str, Tool] = field(default_factory=dict)
    """Settings of the tools by name; those without are the defaults."""
    max_iterations: int = 10
    first_tool: str | None = None


@dataclass(frozen=True)
class Answer:
    """What a loop gave, and why it ended."""

    output: str
    finish_reason: FinishReason


async def run_loop(part: Part, messages: Sequence[Message], trace: ItemTrace) -> Answer:
    """Let the model call tools until it answers without calling one, at most `max_iterations` model calls.

    Raises whatever the model's server raises; faults of tools go to the model.
    """
    graph = create_agent(
        part.model, list(part.tools), system_prompt=part.instructions, middleware=_middleware(part, trace)
    )
    said = len(trace.texts)
    try:
        state = await graph.ainvoke({"messages": [dict(message) for message in messages]})  # pyright: ignore[reportArgumentType]
    except ModelCallLimitExceededError:
        return Answer(trace.texts[-1] if len(trace.texts) > said else "", "max_iterations")
    last = state["messages"][-1]
    if isinstance(last, AIMessage):
        reason = last.response_metadata.get("finish_reason")
        return Answer(last.text, "length" if reason == "length" else "stop")
    assert isinstance(last, ToolMessage), last
    return Answer(last.text, "stop")


def _middleware(part: Part, trace: ItemTrace) -> list[AgentMiddleware[Any, Any, Any]]:
    chain: list[AgentMiddleware[Any, Any, Any]] = [
        DirectAnswer(part.settings),
        ModelCallLimitMiddleware(run_limit=part.max_iterations, exit_behavior="error"),
        Recorder(part.role, trace, part.settings),
    ]
    return [*chain, FirstTool(part.first_tool)] if part.first_tool else chain
