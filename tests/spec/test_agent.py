"""`spec.agent` and its profiles: what is known, what is refused and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from mloc_dagster.placement.local.inputs import local_files
from mloc_dagster.spec import SpecError, load_file, load_text
from mloc_dagster.spec.agent import Agent, every_tool, over
from mloc_dagster.spec.agent_checks import known_tools
from mloc_dagster.spec.agent_profiles import load_profile, shipped

HEAD = "apiVersion: mloc/v1\nmetadata: {name: t}\nspec:\n  taskType: agent\n  task: x\n  model: org/m\n"


def faults(text: str) -> list[tuple[int, str, str, str]]:
    with pytest.raises(SpecError) as caught:
        load_text(HEAD + text)
    return [(fault.line, fault.path, fault.what, fault.way_out) for fault in caught.value.faults]


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_profiles_are_whole(name: str) -> None:
    profile = load_profile(shipped()[name])
    assert profile.description and every_tool(profile)
    assert {tool.name for tool in every_tool(profile)} <= set(known_tools())
    assert load_text(f"{HEAD}  configName: {name}\n").warnings == ()


def test_the_profiles_of_the_language_are_shipped() -> None:
    assert {"default", "simple_search", "examples/search_agent", "examples/paper_collector", "orchestra"} <= set(
        shipped()
    )


@pytest.mark.parametrize(
    ("text", "line", "path", "what", "way_out"),
    [
        (
            "  agent: {tools: [calculator, calculater]}\n",
            7,
            "spec.agent.tools[1]",
            "is not a tool",
            "did you mean calculator?",
        ),
        (
            "  agent:\n    tools:\n      - {name: bashh}\n",
            9,
            "spec.agent.tools[0]",
            "is not a tool",
            "did you mean bash?",
        ),
        (
            "  agent: {tools: [{name: bash, secs: 1}]}\n",
            7,
            "spec.agent.tools[0].secs",
            "is not a key of the task language",
            "did you mean seconds?",
        ),
        (
            "  configName: search_agnt\n",
            7,
            "spec.configName",
            "is not a profile",
            "did you mean examples/search_agent?",
        ),
        ("  configName: ../secret\n", 7, "spec.configName", "is not a profile", None),
        ("  configName: /etc/passwd\n", 7, "spec.configName", "is not a profile", None),
        (
            "  agent: {type: orchestrated}\n",
            7,
            "spec.agent.workers",
            "is missing, and agent type orchestrated needs workers",
            None,
        ),
        (
            "  agent: {workers: [{name: a}]}\n",
            7,
            "spec.agent.workers",
            "is not used by agent type react",
            "write type: orchestrated",
        ),
        (
            "  agent: {tools: [bash], first_tool: bsh}\n",
            7,
            "spec.agent.first_tool",
            "is not a tool of this agent",
            "did you mean bash?",
        ),
        (
            "  agent: {mcp_servers: {a: {args: [x]}}}\n",
            7,
            "spec.agent.mcp_servers.a",
            "names no server",
            "write either command or url",
        ),
        (
            "  agent: {tools: [rag_search]}\n  rag: {vector_store: {path: /i}}\n",
            7,
            "spec.rag.embedding",
            "is missing, and rag_search needs a model that turns texts into vectors",
            None,
        ),
        (
            "  agent: {model: {url: 'http://h/v1', name: n}}\n",
            7,
            "spec.agent.model",
            "is given together with model.source, and an agent has one model",
            "keep one of them",
        ),
        ("  agent: {max_iterations: 0}\n", 7, "spec.agent.max_iterations", "should be greater than 0", None),
    ],
)
def test_a_fault_is_told_at_its_place(text: str, line: int, path: str, what: str, way_out: str | None) -> None:
    told = [fault for fault in faults(text) if fault[1] == path]
    assert told and told[0][0] == line, faults(text)
    assert what in told[0][2]
    assert way_out is None or told[0][3] == way_out


def workspace(folder: Path, profile: str, name: str = "mine", task: str = "  configName: mine\n") -> Path:
    (folder / "agents").mkdir()
    (folder / "agents" / f"{name}.yaml").write_text(profile, "utf-8")
    file = folder / "task.yaml"
    file.write_text(HEAD + task, "utf-8")
    return file


def test_a_profile_of_the_workspace_is_an_input(tmp_path: Path) -> None:
    stage = load_file(workspace(tmp_path, "tools: [bash]\nmax_iterations: 3\n")).stages[0]
    path = tmp_path / "agents" / "mine.yaml"
    assert stage.spec.agent.config_name == str(path)
    assert ("agent.config_name", path) in local_files(stage.raw)


def test_a_profile_of_the_workspace_goes_before_a_shipped_one(tmp_path: Path) -> None:
    file = workspace(tmp_path, "tools: [bash]\n", "default", "  configName: default\n")
    assert load_file(file).stages[0].spec.agent.config_name == str(tmp_path / "agents" / "default.yaml")


@pytest.mark.parametrize(
    ("profile", "says"),
    [
        ("tools: [bash]\nmax_iteration: 3\n", "mine.yaml:2:1 max_iteration: is not a key"),
        ("tools: [bash]\nmax_iterations: many\n", "mine.yaml:2:17 max_iterations: should be a valid integer"),
        ("- bash\n", "a profile must be a map"),
        ("mcp_servers: {a: {command: x, env: {K: '${KEY}'}}}\n", "a profile cannot hold a reference"),
        ("tools: [bash\n", "mine.yaml:"),
    ],
)
def test_faults_of_a_profile_are_told_with_their_place(profile: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_file(workspace(tmp_path, profile))
    (fault,) = caught.value.faults
    assert (fault.line, fault.path) == (7, "spec.configName") and says in fault.what


def test_what_the_task_says_goes_before_its_profile() -> None:
    whole = over(load_profile(shipped()["examples/search_agent"]), Agent(max_iterations=2, instructions="Be brief."))
    assert (whole.max_iterations, whole.instructions, whole.timeout) == (2, "Be brief.", 600)
    assert [tool.name for tool in every_tool(whole)] == ["web_search", "web_fetch", "wikipedia", "calculator"]


def test_an_agent_without_a_model_is_warned_of() -> None:
    text = "apiVersion: mloc/v1\nspec:\n  taskType: agent\n  task: x\n"
    (warning,) = load_text(text).warnings
    assert (warning.line, warning.path) == (3, "spec.taskType") and "names no model" in warning.what


def test_what_an_agent_does_not_read_is_named() -> None:
    (warning,) = load_text(f"{HEAD}  inference: {{n: 3}}\n").warnings
    assert (warning.path, warning.what) == ("spec.inference.n", "is not used by taskType agent")
