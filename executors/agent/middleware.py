"""What happens around each call of the model and of a tool: the trace, limits, and answers to faulty calls."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse, ToolCallRequest, hook_config
from langchain_core.messages import AIMessage, AnyMessage, ToolMessage

from executors.agent.tools.fault import ToolFault
from executors.agent.trace import ItemTrace
from executors.base import ExecutorError
from mloc_dagster.spec.agent import ANY_TOOL, Tool
from mloc_dagster.spec.base import Json

_OBSERVATION = 20_000
"""Characters of a tool's answer that the model sees."""


class Recorder(AgentMiddleware):
    """Writes each call to the trace and turns what goes wrong in a tool into a message for the model."""

    def __init__(self, role: str, trace: ItemTrace, tools: Mapping[str, Tool]) -> None:
        super().__init__()
        self._role, self._trace, self._tools = role, trace, tools

    async def awrap_model_call(
        self, request: ModelRequest, handler: Callable[[ModelRequest], Awaitable[ModelResponse]]
    ) -> ModelResponse:
        """Ask the model and record what it said."""
        started = time.monotonic()
        response = await handler(request)
        for message in response.result:
            if isinstance(message, AIMessage):
                self._record_model(message, time.monotonic() - started)
        return response

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Any]]
    ) -> ToolMessage:
        """Call the tool, at most for its seconds; a fault becomes a message with status `error`."""
        call, started = request.tool_call, time.monotonic()
        seconds = self._tools.get(call["name"], Tool(name=call["name"])).seconds
        clock = asyncio.timeout(seconds)
        try:
            async with clock:
                answer = await handler(request)
            text, failed = _text(answer.content), answer.status == "error"
        except TimeoutError as error:
            told = f"it took longer than {seconds:g} s" if clock.expired() else f"TimeoutError: {error}"
            text, failed = f"{call['name']} failed: {told}.", True
        except (ToolFault, ExecutorError) as error:
            text, failed = str(error), True
        except Exception as error:
            text, failed = f"{call['name']} failed: {type(error).__name__}: {error}", True
        text = _cut(text)
        self._record_tool(call["name"], call["args"], text, failed, time.monotonic() - started)
        status = "error" if failed else "success"
        return ToolMessage(text, name=call["name"], tool_call_id=call["id"] or "", status=status)

    @hook_config(can_jump_to=["model"])
    async def aafter_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """Answer calls whose arguments cannot be read, and let the model try again."""
        last = state["messages"][-1]
        if not isinstance(last, AIMessage) or not last.invalid_tool_calls:
            return None
        answers: list[AnyMessage] = []
        for call in last.invalid_tool_calls:
            name = call.get("name") or "unknown"
            text = (
                f"The call of {name} was not carried out: its arguments are no JSON object ({_cut(_why(call), 300)}). "
                f"They were: {_cut(call.get('args') or '', 300)!r}. Call it again with a JSON object."
            )
            self._record_tool(name, call.get("args"), text, True, 0.0)
            answers.append(ToolMessage(text, name=name, tool_call_id=call.get("id") or "", status="error"))
        return {"messages": answers} | ({} if last.tool_calls else {"jump_to": "model"})

    def _record_model(self, message: AIMessage, seconds: float) -> None:
        used = message.usage_metadata
        calls = [{"id": call["id"], "tool": call["name"], "arguments": call["args"]} for call in message.tool_calls]
        calls += [
            {"id": call.get("id"), "tool": call.get("name"), "arguments": call.get("args"), "malformed": True}
            for call in message.invalid_tool_calls
        ]
        if message.text.strip():
            self._trace.texts.append(message.text)
        self._trace.step(
            "model", self._role, seconds, message=message.text, tool_calls=calls,
            finish_reason=message.response_metadata.get("finish_reason"),
            prompt_tokens=used["input_tokens"] if used else None,
            completion_tokens=used["output_tokens"] if used else None,
        )  # fmt: skip

    def _record_tool(self, tool: str, arguments: Json, text: str, failed: bool, seconds: float) -> None:
        self._trace.step("tool", self._role, seconds, tool=tool, arguments=arguments, observation=text, is_error=failed)


class FirstTool(AgentMiddleware):
    """Makes the first model call a call of a tool, with arguments held to its schema where the server can do that."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name, self._done = name, False

    async def awrap_model_call(
        self, request: ModelRequest, handler: Callable[[ModelRequest], Awaitable[ModelResponse]]
    ) -> ModelResponse:
        """Ask with a tool choice, once."""
        if self._done:
            return await handler(request)
        self._done = True
        if self._name == ANY_TOOL:
            return await handler(request.override(tool_choice="required"))
        tools = [tool for tool in request.tools if not isinstance(tool, dict) and tool.name == self._name]
        settings = {**request.model_settings, "strict": True}
        return await handler(request.override(tools=[*tools], tool_choice=self._name, model_settings=settings))


class DirectAnswer(AgentMiddleware):
    """Ends the loop when a tool has answered whose result is the agent's answer."""

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        super().__init__()
        self._direct = {name for name, tool in tools.items() if tool.return_direct}

    @hook_config(can_jump_to=["end"])
    async def abefore_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """Jump to the end after such an answer; a failed call goes on to the model."""
        last = state["messages"][-1]
        direct = isinstance(last, ToolMessage) and last.status != "error" and last.name in self._direct
        return {"jump_to": "end"} if direct else None


def _text(content: Json) -> str:
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else [content]
    parts = (block.get("text") if isinstance(block, dict) else str(block) for block in blocks)
    return "\n".join(part if part is not None else "[no text]" for part in parts)


def _cut(text: str, longest: int = _OBSERVATION) -> str:
    return text if len(text) <= longest else f"{text[:longest]}\n[{len(text) - longest} more characters were cut]"


def _why(call: Mapping[str, Json]) -> str:
    try:
        found = json.loads(call.get("args") or "")
    except ValueError as error:
        return str(error)
    return f"they are {type(found).__name__}"
