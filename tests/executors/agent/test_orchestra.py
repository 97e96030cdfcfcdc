"""A planner, workers and a reporter."""

from __future__ import annotations

import json
from typing import Any

import pytest

from executors.base import ExecutorError
from tests.executors.agent.conftest import MakeJob, Serve, items_of, tools_in
from tests.executors.agent.scripted import Body, Message, call, last, say, turns

AGENT: dict[str, Any] = {"config_name": "orchestra"}


def role(body: Body) -> str:
    """Who is asked, by the system prompt and the form of the answer."""
    if "response_format" in body:
        return "planner"
    names = [tool["function"]["name"] for tool in body.get("tools") or []]
    return "analyst" if "calculator" in names else "writer" if "file_edit" in names else "reporter"


def plan(*steps: tuple[str, str]) -> Message:
    return say(json.dumps({"steps": [{"worker": worker, "task": task} for worker, task in steps]}))


def works(body: Body) -> Message:
    """Everyone does what the profile says."""
    match role(body):
        case "planner":
            return plan(("analyst", "Compute 6 * 7"), ("writer", "Write it down"))
        case "analyst":
            return say(last(body)["content"]) if turns(body) else call("calculator", {"expression": "6 * 7"})
        case "writer":
            text = last(body)["content"]
            return say("written") if turns(body) else call("file_edit", {"path": "r.txt", "text": text})
        case _:
            return say("The answer is 42.")


def test_a_plan_is_carried_out_and_reported(serve: Serve, agent_job: MakeJob) -> None:
    server = serve(works)
    (item,) = items_of(agent_job(server, AGENT, items=["What is six times seven?"]))
    assert (item["output"], item["finish_reason"]) == ("The answer is 42.", "stop")
    assert [step["agent"] for step in item["steps"]] == ["planner", *["analyst"] * 3, *["writer"] * 3, "reporter"]
    calculated, written = tools_in(item)
    assert calculated["observation"] == "42"
    assert "What was found before:\nStep 1, analyst: Compute 6 * 7\n42" in written["arguments"]["text"]
    planner, reporter = server.requests[0], server.requests[-1]
    step = planner["response_format"]["json_schema"]["schema"]["properties"]["steps"]["items"]
    assert step["properties"]["worker"]["enum"] == ["analyst", "writer"]
    assert "- analyst: Computes numbers" in planner["messages"][0]["content"]
    assert "Step 2, writer: Write it down\nwritten" in reporter["messages"][-1]["content"]


def test_a_plan_that_cannot_be_carried_out_is_told_and_written_again(serve: Serve, agent_job: MakeJob) -> None:
    bad = [plan(("typist", "x")), say("no plan")]

    def script(body: Body) -> Message:
        return bad.pop() if role(body) == "planner" and bad else works(body)

    with pytest.raises(ExecutorError, match="no plan that can be carried out: 'typist' is not a worker"):
        items_of(agent_job(serve(script), AGENT))
    bad[:] = [say("I would begin with")]
    server = serve(script)
    (item,) = items_of(agent_job(server, AGENT, name="again"))
    assert item["output"] == "The answer is 42."
    told = server.requests[1]["messages"][-1]
    assert told["role"] == "user" and told["content"].startswith("This plan cannot be carried out:")


def test_a_worker_at_its_limit_is_reported_as_unfinished(serve: Serve, agent_job: MakeJob) -> None:
    def script(body: Body) -> Message:
        if role(body) == "analyst":
            return call("calculator", {"expression": "1"}, turns(body))
        return works(body)

    server = serve(script)
    (item,) = items_of(agent_job(server, {**AGENT, "max_iterations": 2, "max_steps": 1}))
    assert item["finish_reason"] == "stop"
    assert [step["agent"] for step in item["steps"]] == ["planner", *["analyst"] * 4, "reporter"]
    assert "(unfinished: it came to its limit" in server.requests[-1]["messages"][-1]["content"]
