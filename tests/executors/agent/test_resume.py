"""After a kill -9 a stage goes on with the items that had not ended; a stop leaves them to the next attempt too."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from pathlib import Path

from executors.stopping import STOPPED
from tests.executors.agent.conftest import MakeJob, Serve, items_of, run
from tests.executors.agent.scripted import Body, Message, Scripted, asked, call, last, say, turns
from tests.executors.conftest import result_of, run_host, start_host


def one_waits(waiting: set[str]) -> object:
    """Answer every item after one call of a tool; those in `waiting` never get their second answer."""

    def script(body: Body) -> Message:
        if not turns(body):
            return call("calculator", {"expression": asked(body)})
        until = time.monotonic() + 60
        while asked(body) in waiting and time.monotonic() < until:
            time.sleep(0.02)
        return say(last(body)["content"])

    return script


def until_asked(server: Scripted, item: str, times: int) -> None:
    """Wait until the model was asked so often for an item."""
    until = time.monotonic() + 60
    while sum(asked(body) == item for body in server.requests) < times:
        assert time.monotonic() < until, server.requests
        time.sleep(0.02)


def test_a_killed_stage_goes_on(serve: Serve, agent_job: MakeJob) -> None:
    waiting = {"3 + 3"}
    server = serve(one_waits(waiting))  # pyright: ignore[reportArgumentType]
    job = agent_job(server, {"tools": ["calculator", "file_edit"]}, items=["1 + 1", "2 + 2", "3 + 3", "4 + 4"])
    process = start_host(job)
    until_asked(server, "3 + 3", 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    trace = job.out / "trace" / "steps.jsonl"
    assert [json.loads(line)["type"] for line in trace.read_text("utf-8").splitlines()].count("end") == 2
    with trace.open("a", encoding="utf-8") as file:
        file.write('{"item": 2, "type": "tool", "obs')  # a line that a kill cut
    waiting.clear()
    code, output = run_host(job)
    assert code == 0, output
    result = result_of(job)
    assert [item["output"] for item in result["payload"]["items"]] == ["2", "4", "6", "8"]
    assert all(
        [step["type"] for step in item["steps"]] == ["model", "tool", "model"] for item in result["payload"]["items"]
    )
    assert result["metadata"]["resumed"] == 2
    assert result["payload"]["usage"]["num_requests"] == 8
    assert Counter(map(asked, server.requests)) == {"1 + 1": 2, "2 + 2": 2, "3 + 3": 4, "4 + 4": 2}


def test_a_stopped_stage_ends_and_goes_on(serve: Serve, agent_job: MakeJob) -> None:
    waiting = {"2 + 2"}
    server = serve(one_waits(waiting))  # pyright: ignore[reportArgumentType]
    job = agent_job(server, {"tools": ["calculator"]}, items=["1 + 1", "2 + 2"])
    process = start_host(job)
    until_asked(server, "2 + 2", 2)
    process.terminate()
    assert process.wait(20) == STOPPED, process.communicate()
    waiting.clear()
    assert run(job).metadata["resumed"] == 1


def test_what_failed_is_done_again_and_a_changed_prompt_too(serve: Serve, agent_job: MakeJob) -> None:
    broken = {"b"}
    server = serve(lambda body: {"status": 400} if asked(body) in broken else say(asked(body)))
    assert [i["finish_reason"] for i in items_of(agent_job(server, {}, items=["a", "b", "c"]))] == [
        "stop",
        "error",
        "stop",
    ]
    broken.clear()
    assert [i["output"] for i in items_of(agent_job(server, {}, items=["a", "b", "d"]))] == ["a", "b", "d"]
    assert Counter(map(asked, server.requests)) == {"a": 1, "b": 2, "c": 1, "d": 1}


def test_fresh_starts_over(serve: Serve, agent_job: MakeJob, tmp_path: Path) -> None:
    server = serve(lambda body: say(asked(body)))
    job = agent_job(server, {})
    run(job)
    run(job.model_copy(update={"fresh": True}))
    assert len(server.requests) == 2
