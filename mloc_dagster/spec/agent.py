"""`spec.agent` and the profiles that it names: tools, limits, roles and the model of an agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from mloc_dagster.spec.base import Positive, Section, also

Need = Literal["nothing", "sandbox", "network", "index"]
TOOLS: Mapping[str, Need] = {
    "calculator": "nothing",
    "file_browser": "nothing",
    "file_edit": "nothing",
    "python_repl": "sandbox",
    "bash": "sandbox",
    "web_search": "network",
    "web_fetch": "network",
    "arxiv": "network",
    "wikipedia": "network",
    "rag_search": "index",
}
"""The tools that come with MLOC, and what each needs of the deployment or of the stage."""
TOOL_GROUP = "mloc.tools"
"""Entry-point group in which packages offer tools."""
ANY_TOOL = "any"
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class Tool(Section):
    """A tool with settings of its own; a bare name stands for the defaults."""

    name: str
    """Name of the tool."""
    seconds: Annotated[float, Field(gt=0)] = 60.0
    """Longest call, in seconds; a longer one is answered with an error that the model sees."""
    return_direct: bool = False
    """Whether the tool's result is the agent's answer."""


class McpServer(Section):
    """A server of the Model Context Protocol: a command that is run contained, or an address."""

    command: str | None = None
    """Program that talks over its standard input and output; it runs in the sandbox, in the item's work folder."""
    args: list[str] = []
    """Arguments of the command."""
    env: dict[str, str] = {}
    """Environment of the command; nothing else is inherited."""
    url: str | None = None
    """Address of a streamable HTTP server; a network tool."""
    headers: dict[str, str] = {}
    """HTTP headers of each request."""
    tools: list[str] | None = None
    """Names of the tools that are offered to the model; all when not given."""


class Role(Section):
    """The planner or the reporter of an orchestrated agent."""

    instructions: str | None = None
    """What it is told."""


class Worker(Section):
    """One worker of an orchestrated agent."""

    name: _Name
    """Name by which the planner calls it."""
    description: str = ""
    """What it can do, for the planner."""
    instructions: str | None = None
    """What it is told."""
    tools: list[str | Tool] | None = None
    """Its tools; those of the agent when not given."""


class AgentModel(Section):
    """A model behind any OpenAI-compatible address; without it, `model.source` is served here."""

    url: str
    """Base address, such as https://host/v1."""
    name: str
    """The model's name there."""
    api_key: str | None = None
    """Key of the server; write ${NAME}."""


class Profile(Section):
    """What a profile file may say; `spec.agent` may say the same and goes first."""

    description: str | None = None
    """What the agent is for."""
    type: Annotated[Literal["react", "tool_calling", "orchestrated"], also("agent_type")] = "react"
    """A loop of model and tools (react, tool_calling), or a planner, workers and a reporter (orchestrated)."""
    tools: list[str | Tool] = []
    """Names of tools, or maps with name and settings."""
    mcp_servers: dict[str, McpServer] = {}
    """Servers by name; their tools are called <server>_<tool>."""
    max_iterations: Positive = 10
    """Model calls for one item; of an orchestrated agent, for one step of the plan."""
    timeout: Annotated[float, Field(gt=0)] = 300.0
    """Seconds for one item."""
    instructions: str | None = None
    """System prompt."""
    first_tool: str | None = None
    """Tool that the first model call has to call, or `any`."""
    planner: Role = Role()
    """Who makes the plan of an orchestrated agent."""
    workers: list[Worker] = []
    """Who carries out the steps of the plan."""
    reporter: Role = Role()
    """Who writes the answer from what the workers found."""
    max_steps: Positive = 5
    """Longest plan."""


class Agent(Profile):
    """One agent; a profile fills what is not given."""

    config_name: Annotated[str | None, also("configName")] = None
    """Name of a profile: one that is shipped, or agents/<name>.yaml beside the task file."""
    model: AgentModel | None = None
    """The model, when it is not served here."""
    concurrency: Positive = 1
    """Items that are worked on at the same time."""


def over(profile: Profile, agent: Agent) -> Agent:
    """Return the agent with what it does not say itself taken from the profile."""
    return Agent.model_validate(profile.model_dump(exclude_unset=True) | agent.model_dump(exclude_unset=True))


def tools_of(tools: list[str | Tool]) -> list[Tool]:
    """Return all tools in the long form."""
    return [Tool(name=tool) if isinstance(tool, str) else tool for tool in tools]


def every_tool(agent: Profile) -> list[Tool]:
    """Return the tools of the agent and of its workers."""
    return tools_of([*agent.tools, *(tool for worker in agent.workers for tool in worker.tools or [])])
