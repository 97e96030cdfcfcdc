"""Tools of servers that speak the Model Context Protocol (https://modelcontextprotocol.io)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.agent.tools.fault import ToolFault
from executors.agent.tools.room import Room
from executors.base import ExecutorError
from executors.sandbox import Limits, contained
from mloc_dagster.spec.agent import McpServer

if TYPE_CHECKING:
    import mcp
    from langchain_core.tools import BaseTool

_LAST_WORDS = 500
_LOADERS = ("LD_", "GLIBC_", "GCONV_", "MALLOC_")


@asynccontextmanager
async def connected(servers: Mapping[str, McpServer], room: Room) -> AsyncIterator[list[BaseTool]]:
    """Start or reach all servers for one item and yield their tools, called `<server>_<tool>`.

    A command is run contained, with the item's work folder as its own. Raises ExecutorError for a server that cannot
    be reached or lacks a tool that is named.
    """
    async with AsyncExitStack() as stack:
        tools: list[BaseTool] = []
        for name, server in servers.items():
            client = await stack.enter_async_context(_client(name, server, room))
            tools += await _tools(name, server, client)
        yield tools


@asynccontextmanager
async def _client(name: str, server: McpServer, room: Room) -> AsyncIterator[mcp.Client]:
    import mcp

    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        async with AsyncExitStack() as stack:
            try:
                transport = await _transport(name, server, room, errors, stack)
                client = await stack.enter_async_context(mcp.Client(transport))
            except Exception as error:
                errors.seek(0)
                words = errors.read()[-_LAST_WORDS:].strip()
                raise ExecutorError(
                    f"agent.mcp_servers.{name} cannot be used: {_first(error)}{f' ({words})' if words else ''}.",
                    "A command runs contained: without network, with this Python and the system's programs alone.",
                ) from error
            yield client


async def _transport(name: str, server: McpServer, room: Room, errors: Any, stack: AsyncExitStack) -> Any:
    from mcp.client.stdio import StdioServerParameters, stdio_client
    from mcp.client.streamable_http import streamable_http_client
    from mcp.shared._httpx_utils import create_mcp_http_client

    if server.url:
        client = await stack.enter_async_context(create_mcp_http_client(headers=server.headers))
        return streamable_http_client(server.url, http_client=client)
    scratch = Path(tempfile.mkdtemp(prefix="mloc-mcp-"))
    stack.callback(shutil.rmtree, scratch, ignore_errors=True)
    seconds = room.seconds_left(86_400)
    limits = Limits(seconds=seconds, cpu_seconds=max(1, round(seconds)))
    line, environment = contained(
        [server.command or "", *server.args], work=room.folder, scratch=scratch, limits=limits
    )
    environment = {**environment, **_harmless(name, server.env)}
    parameters = StdioServerParameters(command=line[0], args=line[1:], env=environment, cwd=room.folder)
    return stdio_client(parameters, errlog=errors)


def _harmless(name: str, env: Mapping[str, str]) -> Mapping[str, str]:
    """The variables of a server; raises ExecutorError for those that the loader obeys before the sandbox is closed."""
    barred = next((key for key in env if key.startswith(_LOADERS)), None)
    if barred:
        raise ExecutorError(
            f"agent.mcp_servers.{name}.env sets {barred}, which acts outside of the sandbox.", "Remove it."
        )
    return env


async def _tools(name: str, server: McpServer, client: mcp.Client) -> list[BaseTool]:
    offered: dict[str, Any] = {}
    cursor: str | None = None
    while True:
        page = await client.list_tools(cursor=cursor)
        offered |= {tool.name: tool for tool in page.tools}
        cursor = page.next_cursor
        if not cursor:
            break
    missing = [tool for tool in server.tools or [] if tool not in offered]
    if missing:
        raise ExecutorError(
            f"agent.mcp_servers.{name}.tools names {missing[0]!r}, which the server does not offer.",
            f"It offers {', '.join(offered) or 'none'}.",
        )
    return [
        _as_tool(name, client, tool) for key, tool in offered.items() if server.tools is None or key in server.tools
    ]


def _as_tool(server: str, client: mcp.Client, tool: Any) -> BaseTool:
    from langchain_core.tools import StructuredTool

    async def call(**arguments: Any) -> str:
        answer = await client.call_tool(tool.name, arguments)
        text = "\n".join(getattr(block, "text", f"[{block.type}]") for block in answer.content)
        if answer.is_error:
            raise ToolFault(text or "The tool failed and did not say why.")
        return text

    return StructuredTool(
        name=f"{server}_{tool.name}", description=tool.description or tool.name, args_schema=tool.input_schema,
        coroutine=call,
    )  # fmt: skip


def _first(error: BaseException) -> str:
    """The innermost fault of a group of them."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
