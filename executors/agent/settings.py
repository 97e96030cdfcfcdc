"""What an agent stage asks for, with its profile filled in, and what the deployment allows of it."""

from __future__ import annotations

import os

from executors.agent.tools.search import SEARCH_URL
from executors.agent.tools.web import NETWORK, is_listed
from executors.base import ExecutorError
from executors.context import TaskContext
from executors.sandbox.backend import chosen
from mloc_dagster.spec import agent_profiles
from mloc_dagster.spec.agent import TOOLS, Agent, every_tool, over
from mloc_dagster.spec.faults import SpecError


def settings_of(ctx: TaskContext) -> Agent:
    """Return the agent with its profile filled in.

    Raises ExecutorError for a profile that is not there, a tool that the deployment does not allow, and a missing
    sandbox where a tool needs one: before any model is asked.
    """
    agent = _with_profile(ctx.spec.agent)
    needs = {tool.name: TOOLS.get(tool.name, "nothing") for tool in every_tool(agent)}
    commands = [name for name, server in agent.mcp_servers.items() if server.command]
    if "sandbox" in needs.values() or commands:
        chosen()
    _check_network(agent, [name for name, need in needs.items() if need == "network"])
    if "web_search" in needs and not os.environ.get(SEARCH_URL):
        raise ExecutorError(
            "agent.tools names web_search, and this deployment names no search server.",
            f"Set {SEARCH_URL} to the address of a SearXNG server where the stage runs, or remove the tool.",
        )
    return agent


def _with_profile(agent: Agent) -> Agent:
    if agent.config_name is None:
        return agent
    path = agent_profiles.find(agent.config_name)
    if path is None:
        way_out = agent_profiles.closest(agent.config_name)
        raise ExecutorError(f"agent.config_name {agent.config_name!r} is not a profile.", f"{way_out}.".capitalize())
    try:
        return over(agent_profiles.load_profile(path), agent)
    except SpecError as error:
        raise ExecutorError(f"The profile {agent.config_name} cannot be used: {error}", "Mend the profile.") from None


def _check_network(agent: Agent, tools: list[str]) -> None:
    if os.environ.get(NETWORK) == "1":
        return
    servers = {name: server.url for name, server in agent.mcp_servers.items() if server.url}
    wanted = tools + [f"mcp_servers.{name}" for name, url in servers.items() if not is_listed(url)]
    if wanted:
        raise ExecutorError(
            f"The agent uses {', '.join(sorted(wanted))}, which reach the network; this deployment does not allow it.",
            f"Set {NETWORK}=1 where the stage runs, or remove them.",
        )
