"""The loop of model and tools: limits, faults, isolation, the trace, the result."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from executors.base import ExecutorError
from tests.executors.agent.conftest import MakeJob, Serve, items_of, run, tools_in
from tests.executors.agent.scripted import Body, Message, asked, call, last, say, turns


def calculates(body: Body) -> Message:
    """Call the calculator, then say what it gave."""
    if turns(body) == 0:
        return call("calculator", {"expression": asked(body)})
    return say(f"It is {last(body)['content']}.")


def test_a_tool_is_called_and_its_result_used(serve: Serve, agent_job: MakeJob) -> None:
    server = serve(calculates)
    job = agent_job(server, {"tools": ["calculator"], "instructions": "Be exact."}, items=["2 * 21", "10 / 4"])
    result = run(job)
    assert [item["output"] for item in result.payload["items"]] == ["It is 42.", "It is 2.5."]
    assert result.payload["metadata"] == {"batch_summary": {"total_tasks": 2, "completed": 2, "failed": 0}}
    usage = result.payload["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["num_requests"]) == (40, 20, 4)
    model, tool, answer = result.payload["items"][0]["steps"]
    assert model["tool_calls"] == [
        {"id": "call_calculator_0", "tool": "calculator", "arguments": {"expression": "2 * 21"}}
    ]
    assert (tool["tool"], tool["arguments"], tool["observation"]) == ("calculator", {"expression": "2 * 21"}, "42")
    assert (tool["is_error"], answer["message"], answer["finish_reason"]) == (False, "It is 42.", "stop")
    assert all(step["seconds"] >= 0 for step in (model, tool, answer)) and answer["prompt_tokens"] == 10
    first = server.requests[0]
    assert first["messages"][0] == {"role": "system", "content": "Be exact."}
    assert [tool["function"]["name"] for tool in first["tools"]] == ["calculator"] and first["max_tokens"] == 512
    written = [json.loads(line) for line in (job.out / "trace" / "steps.jsonl").read_text("utf-8").splitlines()]
    assert [line["type"] for line in written] == ["start", "model", "tool", "model", "end"] * 2


def test_max_iterations_ends_one_item_and_the_others_go_on(serve: Serve, agent_job: MakeJob) -> None:
    def script(body: Body) -> Message:
        if asked(body) == "endless":
            return call("calculator", {"expression": "1"}, turns(body)) | {"content": "still at it"}
        return say("done")

    result = run(agent_job(serve(script), {"tools": ["calculator"], "max_iterations": 3}, items=["endless", "b"]))
    endless, other = result.payload["items"]
    assert (endless["finish_reason"], endless["output"]) == ("max_iterations", "still at it")
    assert [step["type"] for step in endless["steps"]] == ["model", "tool"] * 3
    assert (other["finish_reason"], other["output"]) == ("stop", "done")
    assert result.payload["metadata"]["batch_summary"] == {"total_tasks": 2, "completed": 1, "failed": 1}


def test_a_timeout_ends_one_item_and_the_others_go_on(serve: Serve, agent_job: MakeJob) -> None:
    def script(body: Body) -> Message:
        if asked(body) == "slow":
            time.sleep(3)
        return say("done")

    started = time.monotonic()
    slow, other = items_of(agent_job(serve(script), {"timeout": 0.7}, items=["slow", "b"]))
    assert slow["finish_reason"] == "timeout" and 0.6 < slow["seconds"] < 2.5 and time.monotonic() - started < 20
    assert (other["finish_reason"], other["output"]) == ("stop", "done")


def test_code_does_not_outlive_its_item(serve: Serve, agent_job: MakeJob) -> None:
    code = "import time\nfor i in range(100):\n    open('beat', 'w').write(str(i))\n    time.sleep(.1)"
    job = agent_job(serve(lambda body: call("python_repl", {"code": code})), {"tools": ["python_repl"], "timeout": 2})
    (item,) = items_of(job)
    assert item["finish_reason"] == "timeout"
    time.sleep(1)
    beat = Path(item["folder"]) / "beat"
    seen = beat.read_text("utf-8")
    time.sleep(0.5)
    assert beat.read_text("utf-8") == seen


def test_a_tool_that_takes_too_long_is_told_to_the_model(serve: Serve, agent_job: MakeJob) -> None:
    def script(body: Body) -> Message:
        code = "import time; print('a', flush=True); time.sleep(30)"
        return say(last(body)["content"]) if turns(body) else call("python_repl", {"code": code})

    (item,) = items_of(agent_job(serve(script), {"tools": [{"name": "python_repl", "seconds": 1}]}))
    assert item["finish_reason"] == "stop" and item["seconds"] < 15
    assert "limit of time" in item["output"] or "took longer than 1 s" in item["output"]


def test_a_fault_of_a_tool_goes_back_to_the_model(serve: Serve, agent_job: MakeJob) -> None:
    def script(body: Body) -> Message:
        expressions = ["1 / 0", "two plus two", "2 + 2"]
        if turns(body) < 3:
            return call("calculator", {"expression": expressions[turns(body)]}, turns(body))
        return say(last(body)["content"])

    (item,) = items_of(agent_job(serve(script), {"tools": ["calculator"]}))
    first, second, third = tools_in(item)
    assert first["is_error"] and first["observation"] == "'1 / 0' has no value: division by zero."
    assert second["is_error"] and "no arithmetic expression" in second["observation"]
    assert not third["is_error"] and item["output"] == "4"


def test_malformed_calls_are_answered_with_what_was_wrong(serve: Serve, agent_job: MakeJob) -> None:
    def script(body: Body) -> Message:
        answers = [
            call("calculator", '{"expression": "1 + ', 0),
            call("calculator", {"formula": "1 + 1"}, 1),
            call("calculater", {"expression": "1 + 1"}, 2),
            call("calculator", {"expression": "1 + 1"}, 3),
            say("two"),
        ]
        return answers[turns(body)]

    server = serve(script)
    (item,) = items_of(agent_job(server, {"tools": ["calculator"]}))
    broken, misnamed, unknown, right = tools_in(item)
    assert "no JSON object (Unterminated string" in broken["observation"] and broken["is_error"]
    assert "expression" in misnamed["observation"] and "required" in misnamed["observation"] and misnamed["is_error"]
    assert "calculater is not a valid tool, try one of [calculator]" in unknown["observation"] and unknown["is_error"]
    assert (right["observation"], right["is_error"], item["output"]) == ("2", False, "two")
    told = [turn["content"] for turn in server.requests[-1]["messages"] if turn["role"] == "tool"]
    assert told == [step["observation"] for step in tools_in(item)]


def test_a_fault_of_the_server_fails_one_item_only(serve: Serve, agent_job: MakeJob) -> None:
    def script(body: Body) -> Message:
        return {"status": 400} if asked(body) == "bad" else say("fine")

    bad, good = items_of(agent_job(serve(script), {}, items=["bad", "good"]))
    assert bad["finish_reason"] == "error" and "broken" in bad["error"] and bad["output"] == ""
    assert (good["finish_reason"], good["output"], "error" in good) == ("stop", "fine", False)


def test_when_every_item_fails_the_stage_fails(serve: Serve, agent_job: MakeJob) -> None:
    with pytest.raises(ExecutorError, match=r"All 2 items failed; the first one with: .*broken"):
        run(agent_job(serve(lambda body: {"status": 400}), {}, items=["a", "b"]))


def test_the_first_tool_is_forced_with_its_strict_schema(serve: Serve, agent_job: MakeJob) -> None:
    server = serve(calculates)
    agent = {"tools": ["file_browser", "calculator"], "first_tool": "calculator"}
    (item,) = items_of(agent_job(server, agent, items=["3 * 3"]))
    first, second = server.requests
    assert first["tool_choice"] == {"type": "function", "function": {"name": "calculator"}}
    (function,) = [tool["function"] for tool in first["tools"]]
    assert function["strict"] is True and function["parameters"]["additionalProperties"] is False
    assert function["parameters"]["required"] == ["expression"]
    assert second.get("tool_choice") in (None, "auto") and len(second["tools"]) == 2
    assert item["output"] == "It is 9."
    run(agent_job(server, {"tools": ["calculator"], "first_tool": "any"}, name="any"))
    assert server.requests[2]["tool_choice"] == "required"


def test_the_result_of_a_tool_can_be_the_answer(serve: Serve, agent_job: MakeJob) -> None:
    def script(body: Body) -> Message:
        return call("calculator", {"expression": ["1 / 0", "6 * 7"][turns(body)]}, turns(body))

    server = serve(script)
    (item,) = items_of(agent_job(server, {"tools": [{"name": "calculator", "return_direct": True}]}))
    assert (item["output"], item["finish_reason"], len(server.requests)) == ("42", "stop", 2)


def test_items_share_nothing_and_what_they_leave_is_kept(serve: Serve, agent_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hidden", "utf-8")

    def script(body: Body) -> Message:
        code = (
            f"import os; print(os.listdir('.')); open('mine', 'w').write('x'); os.symlink('{tmp_path}/secret', 'link')"
        )
        answers = [call("python_repl", {"code": code}), call("file_browser", {"path": "link"}), say("done")]
        return answers[turns(body)]

    for item in items_of(agent_job(serve(script), {"tools": ["python_repl", "file_browser"]}, items=["a", "b"])):
        ran, looked = tools_in(item)
        assert ran["observation"] == "[]"
        assert looked["is_error"] and "links are not followed" in looked["observation"]
        assert [path.name for path in Path(item["folder"]).iterdir()] == ["mine"]


def test_secrets_are_in_no_step_and_no_result(serve: Serve, agent_job: MakeJob) -> None:
    key = "sk-very-secret-9"

    def script(body: Body) -> Message:
        return say(f"your key is {key}") if turns(body) else call("calculator", {"expression": f"'{key}'"})

    server = serve(script)
    job = agent_job(server, {"tools": ["calculator"]})
    job.raw["agent"]["model"]["api_key"] = "${KEY}"
    result = run(job, KEY=key)
    assert server.headers[0]["authorization"] == f"Bearer {key}"
    assert result.payload["items"][0]["output"] == "your key is ***"
    assert key not in (job.out / "trace" / "steps.jsonl").read_text("utf-8") + result.model_dump_json()


def test_several_items_at_once(serve: Serve, agent_job: MakeJob) -> None:
    waiting: list[str] = []

    def script(body: Body) -> Message:
        waiting.append(asked(body))
        until = time.monotonic() + 10
        while len(waiting) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        return say(f"{asked(body)} of {len(waiting)}")

    outputs = [item["output"] for item in items_of(agent_job(serve(script), {"concurrency": 3}, items=["a", "b", "c"]))]
    assert outputs == ["a of 3", "b of 3", "c of 3"]


def test_prompts_metadata_conversations_and_export(serve: Serve, agent_job: MakeJob) -> None:
    talk = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "x"},
    ]
    data: dict[str, Any] = {"type": "list", "items": [talk], "metadata": [{"id": 7}]}
    export = {
        "jsonl_export": {"path": "e.jsonl", "fields": {"a": "output", "id": "metadata.id", "n": "item.finish_reason"}}
    }
    server = serve(lambda body: say("yes"))
    job = agent_job(
        server, {}, data=data, postprocess=export, inference={"system_prompt": "S", "temperature": 0, "seed": 3}
    )
    payload = run(job).payload
    assert payload["items"][0]["metadata"] == {"id": 7}
    assert json.loads((job.out / "e.jsonl").read_text("utf-8")) == {"a": "yes", "id": 7, "n": "stop"}
    (body,) = server.requests
    assert [turn["role"] for turn in body["messages"]] == ["system", "user", "assistant", "user"]
    assert (body["temperature"], body["seed"]) == (0, 3) and "top_p" not in body
    assert payload["jsonl_export"]["record_count"] == 1


def test_no_model_is_refused(agent_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLOC_AGENT_MODEL_URL", raising=False)
    with pytest.raises(ExecutorError, match="has no model"):
        run(agent_job(None, {}))


def test_the_deployment_can_name_the_model(serve: Serve, agent_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(lambda body: say("hi"))
    monkeypatch.setenv("MLOC_AGENT_MODEL_URL", server.url)
    monkeypatch.setenv("MLOC_AGENT_MODEL_NAME", "ours")
    assert items_of(agent_job(None, {}))[0]["output"] == "hi" and server.requests[0]["model"] == "ours"
