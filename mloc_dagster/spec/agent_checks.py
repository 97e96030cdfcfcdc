"""Checks of `spec.agent`: profile, tools, workers and servers are known and whole."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points

from mloc_dagster.spec import agent_profiles
from mloc_dagster.spec.agent import ANY_TOOL, TOOL_GROUP, TOOLS, Agent, every_tool, over
from mloc_dagster.spec.dialects import AGENT_TYPES
from mloc_dagster.spec.faults import Fault, SpecError, listing, nearest, shown
from mloc_dagster.spec.taskfile import Stage
from mloc_dagster.spec.tree import Mapping, Origin, path_text
from mloc_dagster.spec.typed import origin_at


def agent(stage: Stage, tree: Mapping, here: Origin) -> Iterator[Fault]:
    """Faults of the section; `here` is the place of the whole stage."""
    if stage.spec.task_type not in AGENT_TYPES:
        return
    place = origin_at(tree, ("agent",)) or here
    whole = stage.spec.agent
    if whole.config_name is not None and not stage.is_deferred("agent.config_name"):
        at = origin_at(tree, ("agent", "config_name")) or place
        try:
            whole = _with_profile(whole, str(tree["agent"]["config_name"]))
        except SpecError as error:
            yield from (_of_profile(fault, at) for fault in error.faults)
            return
        except LookupError as error:
            yield Fault(*at.value, at.text, "is not a profile", shown(error.args[0]), error.args[1])
            return
    if stage.is_deferred("agent"):
        return
    yield from _tools(whole, tree, place)
    yield from _workers(whole, place)
    yield from _servers(whole, tree)
    yield from _first_tool(whole, tree, place)
    yield from _index(stage, whole, place)
    yield from _model(stage, tree)


def known_tools() -> list[str]:
    """Return the names of all tools here: our own and those of installed packages."""
    return sorted({*TOOLS, *(point.name for point in entry_points(group=TOOL_GROUP))})


def no_model(stage: Stage, tree: Mapping) -> Iterator[Fault]:
    """The warning for an agent whose model only the deployment can name."""
    spec = stage.spec
    given = (spec.agent.model, spec.model.source, spec.checkpoint.load)
    deferred = any(stage.is_deferred(key) for key in ("agent.model", "model", "checkpoint"))
    if spec.task_type in AGENT_TYPES and not any(given) and not deferred:
        place = tree.origins["task_type"]
        what = "names no model, so the one that the deployment names is used"
        yield Fault(*place.value, place.text, what, "", "add model.source, or agent.model: {url, name}")


def _with_profile(section: Agent, written: str) -> Agent:
    path = agent_profiles.find(section.config_name or "") if agent_profiles.NAME.fullmatch(written) else None
    if path is None:
        raise LookupError(written, agent_profiles.closest(written))
    return over(agent_profiles.load_profile(path), section)


def _of_profile(fault: Fault, at: Origin) -> Fault:
    """A fault of a profile file, told where the task file names the profile."""
    return Fault(*at.value, at.text, f"the profile is faulty: {fault}")


def _tools(whole: Agent, tree: Mapping, place: Origin) -> Iterator[Fault]:
    strange = [tool for tool in every_tool(whole) if tool.name not in TOOLS]
    known = known_tools() if strange else []  # it looks through all installed packages
    for tool in strange:
        if tool.name in known:
            continue
        at = _place_of_tool(tree, tool.name) or place
        guess = nearest(tool.name, known)
        way_out = f"did you mean {guess}?" if guess else f"tools: {listing(known, 20)}"
        yield Fault(*at.value, at.text, "is not a tool", shown(tool.name), way_out)


def _place_of_tool(tree: Mapping, name: str) -> Origin | None:
    """Where the file names the tool; None when only its profile does."""
    section = tree.get("agent")
    for index, tool in enumerate(section.get("tools") or [] if isinstance(section, Mapping) else []):
        if (tool.get("name") if isinstance(tool, Mapping) else tool) == name:
            return origin_at(tree, ("agent", "tools", index))
    return None


def _workers(whole: Agent, place: Origin) -> Iterator[Fault]:
    path = path_text((*place.path, "workers"))
    if whole.type == "orchestrated" and not whole.workers:
        what = "is missing, and agent type orchestrated needs workers"
        yield Fault(*place.key, path, what, "", "add workers: [{name, description, tools}]")
    elif whole.type != "orchestrated" and whole.workers:
        way_out = "write type: orchestrated"
        yield Fault(*place.key, path, f"is not used by agent type {whole.type}", "", way_out)
    names = [worker.name for worker in whole.workers]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Fault(*place.key, path, "two workers have the same name", shown(name), "rename one")


def _servers(whole: Agent, tree: Mapping) -> Iterator[Fault]:
    for name, server in whole.mcp_servers.items():
        at = origin_at(tree, ("agent", "mcp_servers", name)) or tree.origins["task_type"]
        if bool(server.command) == bool(server.url):
            what = "names both a command and a url" if server.url else "names no server"
            yield Fault(*at.key, at.text, what, "", "write either command or url")


def _first_tool(whole: Agent, tree: Mapping, place: Origin) -> Iterator[Fault]:
    first = whole.first_tool
    names = [tool.name for tool in every_tool(whole)]
    of_server = first is not None and any(first.startswith(f"{server}_") for server in whole.mcp_servers)
    if first is None or first in names or of_server or (first == ANY_TOOL and (names or whole.mcp_servers)):
        return
    at = origin_at(tree, ("agent", "first_tool")) or place
    guess = nearest(first, names)
    way_out = f"did you mean {guess}?" if guess else f"tools of this agent: {listing(names) or 'none'}"
    yield Fault(*at.value, at.text, "is not a tool of this agent", shown(first), way_out)


def _index(stage: Stage, whole: Agent, place: Origin) -> Iterator[Fault]:
    rag = stage.spec.rag
    if not any(tool.name == "rag_search" for tool in every_tool(whole)) or stage.is_deferred("rag"):
        return
    if rag.embedding is None:
        what, way_out = "is missing, and rag_search needs a model that turns texts into vectors", "add rag.embedding"
        yield Fault(*place.key, "spec.rag.embedding", what, "", f"{way_out}: {{model: <org>/<name>}}")
    if rag.documents is None and rag.vector_store.path is None:
        way_out = "write ${<stage>.result.index_path} of a rag_indexing stage, or add rag.documents"
        yield Fault(*place.key, "spec.rag.vector_store.path", "is missing, and rag_search needs an index", "", way_out)


def _model(stage: Stage, tree: Mapping) -> Iterator[Fault]:
    if stage.spec.agent.model is None or (stage.spec.model.source is None and stage.spec.checkpoint.load is None):
        return
    at = origin_at(tree, ("agent", "model"))
    if at:
        what = "is given together with model.source, and an agent has one model"
        yield Fault(*at.key, at.text, what, "", "keep one of them")
