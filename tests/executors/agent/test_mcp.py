"""Servers of the Model Context Protocol: real ones, made with the mcp package."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from executors.base import ExecutorError
from tests.executors.agent.conftest import MakeJob, Serve, items_of, tools_in
from tests.executors.agent.scripted import Body, Message, call, last, say, turns

SERVER = Path(__file__).with_name("mcp_server.py")


def command(*arguments: str, **more: Any) -> dict[str, Any]:
    """A server whose source is handed over as text: its file is out of the sandbox's sight."""
    return {"command": "python", "args": ["-c", SERVER.read_text("utf-8"), *arguments], **more}


def adds(body: Body) -> Message:
    """Call add, then say the sum."""
    return say(last(body)["content"]) if turns(body) else call("maths_add", {"a": 2, "b": 40})


def test_a_command_that_talks_over_its_pipes(serve: Serve, agent_job: MakeJob) -> None:
    server = serve(adds)
    (item,) = items_of(agent_job(server, {"mcp_servers": {"maths": command(tools=["add"])}}))
    assert item["output"] == "42"
    (function,) = [tool["function"] for tool in server.requests[0]["tools"]]
    assert (function["name"], function["description"]) == ("maths_add", "Add two numbers.")
    assert function["parameters"]["required"] == ["a", "b"]


def test_the_command_is_contained(serve: Serve, agent_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER", "hunter2")

    def script(body: Body) -> Message:
        return say(last(body)["content"]) if turns(body) else call("s_look", {"path": str(SERVER)})

    servers = {"s": command(env={"TOKEN": "given"})}
    (item,) = items_of(agent_job(serve(script), {"mcp_servers": servers}))
    assert item["output"] == "[] False no network given None"


def test_a_fault_of_a_tool_goes_back_to_the_model(serve: Serve, agent_job: MakeJob) -> None:
    def script(body: Body) -> Message:
        return say("well") if turns(body) else call("s_fail", {})

    (item,) = items_of(agent_job(serve(script), {"mcp_servers": {"s": command()}}))
    (step,) = tools_in(item)
    assert step["is_error"] and "not today" in step["observation"] and item["output"] == "well"


def test_a_server_that_does_not_start_is_told(serve: Serve, agent_job: MakeJob) -> None:
    with pytest.raises(ExecutorError, match=r"agent\.mcp_servers\.s cannot be used.*no settings were found"):
        items_of(agent_job(serve(adds), {"mcp_servers": {"s": command("--broken")}}))
    with pytest.raises(ExecutorError, match="'sum', which the server does not offer"):
        items_of(agent_job(serve(adds), {"mcp_servers": {"s": command(tools=["sum"])}}, name="b"))
    with pytest.raises(ExecutorError, match="sets LD_PRELOAD, which acts outside of the sandbox"):
        items_of(agent_job(serve(adds), {"mcp_servers": {"s": command(env={"LD_PRELOAD": "/x.so"})}}, name="c"))


def test_a_server_at_an_address(serve: Serve, agent_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agent = {"mcp_servers": {"maths": {"url": f"http://127.0.0.1:{port}/mcp"}}}
    with pytest.raises(ExecutorError, match=r"mcp_servers\.maths, which reach the network"):
        items_of(agent_job(serve(adds), agent))
    monkeypatch.setenv("MLOC_AGENT_ALLOWED_HOSTS", f"127.0.0.1:{port}")
    process = subprocess.Popen([sys.executable, str(SERVER), "--http", str(port)], stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        assert items_of(agent_job(serve(adds), agent, name="b"))[0]["output"] == "42"
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("the server did not start")
