"""One item: its folder, its time, its tools, and how it ends."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool

from executors.agent.loop import Answer, Part, run_loop
from executors.agent.model import Address, chat_model
from executors.agent.orchestra import Orchestra, plan_schema, planner_of, play, reporter_of
from executors.agent.tools.build import build_tools
from executors.agent.tools.index import Search
from executors.agent.tools.mcp_servers import connected
from executors.agent.tools.room import Room
from executors.agent.trace import ItemTrace, Outcome
from executors.base import ExecutorError
from executors.messages import Message
from executors.prompts import PromptRow
from mloc_dagster.spec.agent import Agent, Tool, tools_of
from mloc_dagster.spec.inference import Inference


@dataclass(frozen=True)
class Studio:
    """What all items of a stage share."""

    agent: Agent
    inference: Inference
    address: Address
    model: BaseChatModel
    planner_model: BaseChatModel
    search: Search | None
    folders: Path
    """Each item has a folder below it, named by its index."""


def studio_of(agent: Agent, inference: Inference, address: Address, search: Search | None, folders: Path) -> Studio:
    """Make what all items share."""
    model = chat_model(address, inference)
    planner = chat_model(address, inference, plan_schema(agent)) if agent.workers else model
    return Studio(agent, inference, address, model, planner, search, folders)


async def work_on(studio: Studio, row: PromptRow, trace: ItemTrace) -> None:
    """Work on one item and end its trace, whatever happens: only a cancellation leaves it open, to be done again."""
    started = time.monotonic()
    folder = studio.folders / f"{row.index:06d}"
    clock = asyncio.timeout(studio.agent.timeout)
    error: str | None = None
    try:
        make_empty(folder)
        room = Room(folder, started + studio.agent.timeout)
        async with clock:
            answer = await _answer(studio, row, room, trace)
    except Exception as failed:
        said = trace.texts[-1] if trace.texts else ""
        answer = Answer(said, "timeout" if isinstance(failed, TimeoutError) and clock.expired() else "error")
        error = _told(failed) if answer.finish_reason == "error" else None
    finally:
        keep_files_alone(folder)
    seconds = round(time.monotonic() - started, 4)
    trace.end(Outcome(output=answer.output, finish_reason=answer.finish_reason, seconds=seconds, error=error))


def make_empty(folder: Path) -> None:
    """Make the empty folder of an item, whatever code may have left in it."""
    _remove(folder)
    folder.mkdir(parents=True)


def keep_files_alone(folder: Path) -> None:
    """Tidy the folder; one that cannot be (code still writes to it, or nested a thousand folders) goes as a whole."""
    try:
        tidy(folder)
    except FileNotFoundError:
        return
    except (OSError, RecursionError):
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder of any depth and with any permissions, which `shutil.rmtree` does not."""
    for command in (["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
        if os.path.lexists(folder):
            subprocess.run([*command, "--", folder], stderr=subprocess.DEVNULL, check=False)


def tidy(folder: Path) -> bool:
    """Remove links, pipes and empty folders that code may have left; returns whether something is still there."""
    kept = False
    for entry in os.scandir(folder):
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            os.chmod(entry.path, stat.S_IMODE(mode) | stat.S_IRWXU)
            kept |= tidy(Path(entry.path))
        elif stat.S_ISREG(mode):
            kept = True
        else:
            os.unlink(entry.path)
    if not kept:
        folder.rmdir()
    return kept


async def _answer(studio: Studio, row: PromptRow, room: Room, trace: ItemTrace) -> Answer:
    agent, messages = studio.agent, _messages(row)
    async with connected(agent.mcp_servers, room) as offered:
        if agent.type == "orchestrated":
            return await play(_orchestra(studio, room, offered), messages, trace)
        instructions = agent.instructions or studio.inference.system_prompt
        part = _part(studio, "agent", instructions, tools_of(agent.tools), room, offered, agent.first_tool)
        return await run_loop(part, messages, trace)


def _orchestra(studio: Studio, room: Room, offered: Sequence[BaseTool]) -> Orchestra:
    agent = studio.agent
    workers: dict[str, Part] = {}
    for worker in agent.workers:
        tools = tools_of(agent.tools if worker.tools is None else worker.tools)
        instructions = worker.instructions or agent.instructions or studio.inference.system_prompt
        first = agent.first_tool if agent.first_tool in {tool.name for tool in tools} else None
        workers[worker.name] = _part(studio, worker.name, instructions, tools, room, offered, first)
    planner, reporter = planner_of(agent, studio.planner_model), reporter_of(agent, studio.model)
    return Orchestra(planner, workers, reporter, agent.max_steps)


def _part(
    studio: Studio, role: str, instructions: str | None, tools: Sequence[Tool], room: Room,
    offered: Sequence[BaseTool], first_tool: str | None,
) -> Part:  # fmt: skip
    built = [*build_tools(tools, room, studio.search), *offered]
    names = [tool.name for tool in built]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ExecutorError(f"Two tools are called {twice!r}.", "Rename the server in agent.mcp_servers.")
    settings = {tool.name: tool for tool in tools}
    return Part(role, studio.model, instructions, built, settings, studio.agent.max_iterations, first_tool)


def _messages(row: PromptRow) -> list[Message]:
    return [{"role": "user", "content": row.prompt}] if isinstance(row.prompt, str) else row.prompt


def _told(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) if isinstance(error, ExecutorError) else f"{type(error).__name__}: {error}"
