"""Tools in a conversation: how a model is told of them, made to call one, and how its calls are read."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence

from executors.base import ExecutorError
from executors.serving.requests import ChatRequest, Tool
from mloc_dagster.spec.base import Json

_CALL = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)
_PROMPT = """You can call these tools. Each is given with the JSON schema of its parameters.

{tools}

To call a tool, answer with one line and nothing else:
<tool_call>{{"name": "the tool's name", "arguments": {{the parameters}}}}</tool_call>"""


def schema_of(request: ChatRequest) -> Json:
    """The JSON schema that the answer must follow, or None when it may be any text.

    Raises ExecutorError for a tool_choice without that tool.
    """
    choice = request.choice
    if choice == "required":
        if not request.tools:
            raise ExecutorError("tool_choice is required, but there are no tools.", "Give tools.")
        calls = [_call_schema(tool) for tool in request.tools]
        return calls[0] if len(calls) == 1 else {"anyOf": calls}
    if choice not in ("none", "auto"):
        named = next((tool for tool in request.tools if tool.function.name == choice), None)
        if named is None:
            names = ", ".join(tool.function.name for tool in request.tools) or "none"
            raise ExecutorError(f"tool_choice names {choice!r}, which is no tool.", f"Tools: {names}.")
        return _call_schema(named)
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.json_schema is None:
        raise ExecutorError("response_format json_schema gives no schema.", "Write json_schema: {name, schema}.")
    return wanted.json_schema.schema_


def messages_of(request: ChatRequest, *, template_knows_tools: bool) -> list[dict[str, Json]]:
    """The conversation as a chat template takes it: text contents, and tools as text where the template has none."""
    messages = [{**message, "content": _text(message.get("content"))} for message in request.messages]
    if template_knows_tools:
        return [_with_parsed_arguments(message) for message in messages]
    told = [_as_text(message) for message in messages]
    if not request.tools or request.choice == "none":
        return told
    prompt = _PROMPT.format(tools="\n".join(json.dumps(definition(tool)) for tool in request.tools))
    if told[0]["role"] == "system":
        return [{"role": "system", "content": f"{told[0]['content']}\n\n{prompt}"}, *told[1:]]
    return [{"role": "system", "content": prompt}, *told]


def definition(tool: Tool) -> dict[str, Json]:
    """A tool as templates take it."""
    return tool.model_dump()


def calls_in(text: str, request: ChatRequest) -> tuple[str, list[dict[str, Json]]]:
    """Return the text beside the calls, and the calls in the protocol's form; a call of no known tool stays text."""
    forced = request.choice not in ("none", "auto")
    if not request.tools or request.choice == "none":
        return text, []
    names = {tool.function.name for tool in request.tools}
    found = [text] if forced or text.strip().startswith("{") else _CALL.findall(text)
    calls = [call for call in map(_parsed, found) if call and call["name"] in names]
    if not calls or (len(calls) < len(found)):
        return text, []
    rest = "" if found == [text] else _CALL.sub("", text).strip()
    return rest, [_call(call) for call in calls]


def _call_schema(tool: Tool) -> dict[str, Json]:
    parameters = {"type": "object", **tool.function.parameters}
    definitions = {key: parameters.pop(key) for key in ("$defs", "definitions") if key in parameters}
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
        **definitions,
    }


def _parsed(text: str) -> dict[str, Json] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    return {"name": value["name"], "arguments": arguments} if isinstance(arguments, dict) else None


def _call(call: dict[str, Json]) -> dict[str, Json]:
    arguments = json.dumps(call["arguments"], ensure_ascii=False)
    function = {"name": call["name"], "arguments": arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _text(content: Json) -> str:
    """The text of a message; raises ExecutorError for parts that are no text."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, Sequence) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(str(part["text"]) for part in content)
    raise ExecutorError(f"A message has the content {content!r:.80}, which is no text.", "Send text; no images here.")


def _with_parsed_arguments(message: dict[str, Json]) -> dict[str, Json]:
    """Templates write arguments as JSON themselves, the protocol sends them as text."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    parsed = [{**call, "function": {**call["function"], "arguments": _arguments(call)}} for call in calls]
    return {**message, "tool_calls": parsed}


def _as_text(message: dict[str, Json]) -> dict[str, Json]:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = [
        f"<tool_call>{json.dumps({'name': call['function']['name'], 'arguments': _arguments(call)})}</tool_call>"
        for call in message.get("tool_calls") or ()
    ]
    return {"role": message["role"], "content": "\n".join(filter(None, [message["content"], *calls]))}


def _arguments(call: dict[str, Json]) -> Json:
    given = call["function"].get("arguments") or "{}"
    try:
        return json.loads(given) if isinstance(given, str) else given
    except ValueError:
        return given
