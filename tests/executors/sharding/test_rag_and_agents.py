"""Retrieval with answers, and agents, in shards."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from executors.base import ExecutorError, Result
from executors.host import execute
from tests.executors.agent.conftest import MakeJob as MakeAgent
from tests.executors.agent.conftest import Serve, agent_job, serve
from tests.executors.agent.scripted import Body, Message, asked, call, last, say, turns
from tests.executors.conftest import result_of, run_host
from tests.executors.rag.conftest import QUERIES, RIGHT, Stages, minilm, stages
from tests.executors.sharding.test_inference import same

__all__ = ["agent_job", "minilm", "serve", "stages"]

PARALLEL = {"parallel": {"enabled": True, "max_shards": 3}, "resources": {"replicas": 3}}


@pytest.mark.slow
def test_answers_are_those_of_the_unsharded_stage(stages: Stages) -> None:
    """The documents are indexed once, and the quality is that of all queries."""
    rag = {"search": {"top_k": 1}, "expected_field": "right", "min_mrr": 0.9}
    spec: dict[str, Any] = {
        "data": {"items": QUERIES, "metadata": [{"right": right} for right in RIGHT]},
        "inference": {"system_prompt": "s", "max_tokens": 6, "temperature": 0},
        "postprocess": {"jsonl_export": {"path": "x.jsonl"}},
    }
    found = []
    for name, more in (("sharded", PARALLEL), ("plain", {})):
        job = stages.job("rag_inference", name, dict(rag), **spec, **more)
        code, output = run_host(job)
        assert code == 0, output
        result = Result.model_validate(result_of(job))
        assert json.loads((job.out / "queries.json").read_text("utf-8")) == result.payload["queries"]
        assert result.payload.pop("index_path") == str(job.out / "index")
        assert result.payload.pop("jsonl_export")["record_count"] == 3
        result.payload["items"] = result.payload["queries"]
        found.append(result)
    assert found[0].payload["metrics"]["mrr"] == 1.0 and found[0].payload["retrieval"]["passed"]
    assert len(found[0].payload["shards"]) == 3
    same(*found)


def work(body: Body) -> Message:
    """Write a file, then answer."""
    if not turns(body):
        return call("file_edit", {"path": "a.txt", "text": asked(body)})
    return say(f"{asked(body)}: {last(body)['content']}")


def without_seconds(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for item in items:
        item.pop("seconds")
        for step in item["steps"]:
            step.pop("seconds")
        item["folder"] = item["folder"].split("/artifacts/")[1]
    return items


def test_items_of_agents_are_those_of_the_unsharded_stage(serve: Serve, agent_job: MakeAgent) -> None:
    server = serve(work)
    items = [f"q{number}" for number in range(5)]
    jobs = [agent_job(server, {"tools": ["file_edit"]}, name=name, items=items, **more)
            for name, more in (("sharded", PARALLEL), ("plain", {}))]  # fmt: skip
    sharded, plain = map(execute, jobs)
    assert Counter(map(asked, server.requests)) == dict.fromkeys(items, 4)
    for job in jobs:
        texts = [path.read_text("utf-8") for path in sorted((job.out / "artifacts" / "items").glob("*/a.txt"))]
        assert texts == items
    ends = [json.loads(line) for line in (jobs[0].out / "trace" / "steps.jsonl").read_text("utf-8").splitlines()]
    assert [line["item"] for line in ends if line["type"] == "end"] == list(range(5))
    assert without_seconds(sharded.payload["items"]) == without_seconds(plain.payload["items"])
    assert sharded.payload["metadata"] == plain.payload["metadata"]
    same(sharded, plain)


def test_a_shard_whose_items_all_fail_does_not_fail_the_others(serve: Serve, agent_job: MakeAgent) -> None:
    broken = {"a"}
    server = serve(lambda body: {"status": 400} if asked(body) in broken else say(asked(body)))
    result = execute(agent_job(server, {}, items=["a", "b", "c"], **PARALLEL))
    assert [item["finish_reason"] for item in result.payload["items"]] == ["error", "stop", "stop"]
    assert result.payload["metadata"]["batch_summary"] == {"total_tasks": 3, "completed": 2, "failed": 1}
    broken |= {"b", "c"}
    with pytest.raises(ExecutorError, match="All 3 items failed"):
        execute(agent_job(server, {}, name="all", items=["a", "b", "c"], **PARALLEL))
