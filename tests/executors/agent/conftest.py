"""Agents whose model is scripted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from executors.base import Result
from executors.host import execute
from executors.job import Job
from executors.secrets import Secrets
from tests.executors.agent.scripted import Script, Scripted, serving

Serve = Callable[[Script], Scripted]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers that end with the test: `serve(lambda body: say("hi"))`."""
    with ExitStack() as stack:
        yield lambda script: stack.enter_context(serving(script))


MakeJob = Callable[..., Job]


@pytest.fixture
def agent_job(tmp_path: Path) -> MakeJob:
    """Make a job: `agent_job(server, {"tools": [...]}, items=["a"])`."""

    def make(server: Scripted | None, agent: dict[str, Any], *, name: str = "out", **spec: Any) -> Job:
        items = spec.pop("items", ["question"])
        model = {"model": {"url": server.url, "name": "scripted", "api_key": "k"}} if server else {}
        fields = {key: spec.pop(key) for key in ("embedding_path", "cache") if key in spec}
        raw = {"task_type": "agent", "data": {"type": "list", "items": items}, "agent": {**model, **agent}, **spec}
        return Job(task_id="t", task_name="n", stage="s", raw=raw, out=tmp_path / name, **fields)

    return make


def run(job: Job, **environment: str) -> Result:
    """Run a job in this process, with an environment for its references."""
    return execute(job, Secrets(environment))


def items_of(job: Job, **environment: str) -> list[dict[str, Any]]:
    """Run a job and return its items."""
    return run(job, **environment).payload["items"]


def tools_in(item: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of an item that are calls of tools."""
    return [step for step in item["steps"] if step["type"] == "tool"]
