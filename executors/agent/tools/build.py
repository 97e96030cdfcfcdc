"""From names to tools that the model can call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

from langchain_core.tools import BaseTool, StructuredTool

from executors.agent.threads import threaded
from executors.agent.tools.calculator import calculator
from executors.agent.tools.code import bash, python_repl
from executors.agent.tools.files import file_browser, file_edit
from executors.agent.tools.index import Search, rag_search
from executors.agent.tools.room import Room
from executors.agent.tools.search import arxiv, web_search, wikipedia
from executors.agent.tools.web import web_fetch
from executors.base import ExecutorError
from executors.offered import entry_points
from mloc_dagster.spec.agent import TOOL_GROUP, TOOLS, Tool


def build_tools(tools: Sequence[Tool], room: Room, search: Search | None) -> list[BaseTool]:
    """Return the tools of one item; they share its folder and its time. Raises ExecutorError naming the tool."""
    return [_built(tool, room, search) for tool in {tool.name: tool for tool in tools}.values()]


def _built(tool: Tool, room: Room, search: Search | None) -> BaseTool:
    if tool.name not in TOOLS:
        return _custom(tool.name)
    makers: dict[str, Callable[[], Callable[..., str]]] = {
        "calculator": lambda: calculator,
        "file_browser": lambda: file_browser(room),
        "file_edit": lambda: file_edit(room),
        "python_repl": lambda: python_repl(room, tool.seconds),
        "bash": lambda: bash(room, tool.seconds),
        "web_search": lambda: web_search,
        "web_fetch": lambda: web_fetch,
        "arxiv": lambda: arxiv,
        "wikipedia": lambda: wikipedia,
        "rag_search": lambda: rag_search(_open(search)),
    }
    return _as_tool(tool.name, makers[tool.name]())


def _open(search: Search | None) -> Search:
    if search is None:
        raise ExecutorError("rag_search has no index.", "Write rag.vector_store.path and rag.embedding.")
    return search


def _custom(name: str) -> BaseTool:
    """The tool of an installed package: a function with types and a docstring, or a tool of LangChain."""
    points = entry_points(TOOL_GROUP, name)
    if len(points) != 1:
        what = "is not a tool here" if not points else "is offered by more than one package"
        raise ExecutorError(f"agent.tools names {name!r}, which {what}.", f"Packages offer tools in {TOOL_GROUP}.")
    try:
        found = points[0].load()
    except Exception as error:
        raise ExecutorError(
            f"The tool {name!r} ({points[0].value}) cannot be loaded: {type(error).__name__}: {error}.", "Mend it."
        ) from error
    if isinstance(found, StructuredTool) and found.coroutine is None and found.func is not None:
        return found.model_copy(update={"name": name, "coroutine": threaded(found.func)})
    if isinstance(found, BaseTool):
        return found.model_copy(update={"name": name})
    if inspect.iscoroutinefunction(found):
        return StructuredTool.from_function(coroutine=found, name=name, description=inspect.getdoc(found) or name)
    if callable(found):
        return _as_tool(name, found)
    raise ExecutorError(f"The tool {name!r} ({points[0].value}) is {type(found).__name__}.", "Offer a function.")


def _as_tool(name: str, function: Callable[..., object]) -> BaseTool:
    text = inspect.getdoc(function) or name
    return StructuredTool.from_function(coroutine=threaded(function), name=name, description=text)
