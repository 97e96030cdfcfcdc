"""`serve`: an endpoint that people ask, from its start to its end."""

from __future__ import annotations

import json
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from executors.base import ExecutorError
from executors.host import execute
from executors.job import Job
from executors.serving.registry import engines_of
from tests.executors.conftest import MakeJob, error_of, payload, result_of, start_host
from tests.executors.serving.conftest import is_running, kill, pid_of, wait_until

GREEDY = {"max_tokens": 16, "temperature": 0}
SPEC: dict[str, Any] = {"serve": {"ttl": "10m"}, "inference": GREEDY}


@contextmanager
def serving(job: Job, **environment: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The process of a serve stage and what its endpoint.json says; killed when the block ends."""
    host = start_host(job, **environment)
    try:
        wait_until(lambda: (job.out / "endpoint.json").exists() or host.poll() is not None, 120)
        assert host.poll() is None, host.communicate()[0]
        yield host, json.loads((job.out / "endpoint.json").read_text())
    finally:
        host.kill()
        host.wait()


def key_of(told: dict[str, Any]) -> str:
    return Path(told["api_key_file"]).read_text()


def ask(told: dict[str, Any], key: str | None = None, path: str = "/chat/completions", **body: Any) -> Any:
    headers = {"Authorization": f"Bearer {key or key_of(told)}"}
    return requests.post(told["url"] + path, json=body, headers=headers, timeout=120)


def question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def engine_pid(job: Job) -> int:
    [folder] = engines_of(job.out / ".cache" / "engines")
    return pid_of(folder)


def test_from_start_to_cancel(job: MakeJob) -> None:
    spec = {"data": {"items": ["hello"]}, "inference": GREEDY | {"system_prompt": "be brief"}}
    [item] = payload(job("inference", spec, name="own"))["items"]
    serve = job("serve", SPEC | {"inference": GREEDY | {"system_prompt": "be brief"}})
    with serving(serve) as (host, told):
        key_file = Path(told["api_key_file"])
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600 and key_file.parent == serve.out
        choice = ask(told, messages=question("hello")).json()["choices"][0]  # the stage's settings are the defaults
        assert choice["message"]["content"] == item["output"] and choice["finish_reason"] == item["finish_reason"]
        text = ask(told, path="/completions", prompt="hello", max_tokens=4).json()["choices"][0]["text"]
        assert len(text) == 4
        lines = ask(told, messages=question("hello"), stream=True).text.split("\n\n")
        pieces = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines[:-2]]
        assert "".join(piece.get("content", "") for piece in pieces) == item["output"] and "[DONE]" in lines[-2]
        assert ask(told, key="wrong", messages=question("hello")).status_code == 401
        assert ask(told, model="other", messages=question("hello")).status_code == 404
        assert ask(told, messages=question("hello"), logit_bias={}, bogus=1).status_code == 400
        health = requests.get(told["url"].removesuffix("/v1") + "/health", timeout=30)
        assert health.status_code == 200
        models = requests.get(told["url"] + "/models", headers={"Authorization": f"Bearer {key_of(told)}"}, timeout=30)
        assert [one["id"] for one in models.json()["data"]] == ["tiny"]
        [line] = [json.loads(line) for line in (serve.out / "logs" / "progress.jsonl").read_text().splitlines()[:1]]
        assert told["url"] in line["unit"] and line["total"] == 600
        key, pid = key_of(told), engine_pid(serve)
        host.send_signal(signal.SIGTERM)
        output, _ = host.communicate(timeout=60)
        assert host.returncode == 143 and key not in output and told["url"] in output
        assert not is_running(pid) and not key_file.exists()
        assert [path for path in serve.out.rglob("*") if path.is_file() and key in path.read_text()] == []


def test_its_time_ends_it_well(job: MakeJob) -> None:
    serve = job("serve", {"serve": {"ttl": 3}})
    with serving(serve) as (host, told):
        assert ask(told, messages=question("a"), max_tokens=2).ok
        pid = engine_pid(serve)
        assert host.wait(60) == 0 and not is_running(pid)
    result = result_of(serve)
    assert result["payload"]["ended_by"] == "ttl" and result["payload"]["usage"]["num_requests"] == 1
    assert result["metadata"]["url"] == told["url"] and result["metadata"]["engine_start"] == "cold"
    assert result["metrics"]["seconds"] >= 3


def test_without_requests_it_ends_well(job: MakeJob) -> None:
    serve = job("serve", {"serve": {"idle_timeout": 1}})
    result = execute(serve)
    assert result.payload["ended_by"] == "idle_timeout" and result.payload["usage"]["num_requests"] == 0
    assert not (serve.out / ".cache" / "engines").exists()


def test_a_killed_stage_takes_its_engine_along(job: MakeJob) -> None:
    serve = job("serve", SPEC)
    with serving(serve) as (host, _):
        pid = engine_pid(serve)
        host.kill()
        wait_until(lambda: not is_running(pid))


def test_a_killed_engine_is_replaced(job: MakeJob) -> None:
    serve = job("serve", SPEC)
    with serving(serve) as (_, told):
        before = ask(told, messages=question("hello")).json()["choices"][0]["message"]
        pid = engine_pid(serve)
        kill(pid)
        wait_until(lambda: ask(told, messages=question("hello")).ok, 120)
        assert ask(told, messages=question("hello")).json()["choices"][0]["message"] == before
        assert engine_pid(serve) != pid


def test_a_port_in_use_is_a_clear_fault_before_anything_is_loaded(job: MakeJob) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        serve = job("serve", {"serve": {"port": port}})
        host = start_host(serve)
        assert host.wait(60) == 2
    fault = error_of(serve)
    assert f"port {port}" in fault["message"] and "port: 0" in fault["hint"]
    assert not (serve.out / ".cache").exists() and "Traceback" not in host.communicate()[0]


def test_an_open_address_needs_a_key(job: MakeJob) -> None:
    with pytest.raises(ExecutorError, match=r"no serve\.api_key"):
        execute(job("serve", {"serve": {"host": "0.0.0.0", "ttl": 1}}))


def test_a_key_of_the_deployment_is_never_written(job: MakeJob) -> None:
    serve = job("serve", {"serve": {"api_key": "${SERVE_KEY}", "ttl": 600}})
    with serving(serve, SERVE_KEY="a-very-secret-key") as (host, told):
        assert "api_key_file" not in told
        assert ask(told, key="a-very-secret-key", messages=question("a"), max_tokens=2).ok
        assert "a-very-secret-key" not in str(psutil.Process(engine_pid(serve)).environ())
        host.send_signal(signal.SIGTERM)
        output, _ = host.communicate(timeout=60)
        assert "a-very-secret-key" not in output
    files = [path for path in serve.out.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert [path for path in files if b"a-very-secret-key" in path.read_bytes()] == []


def test_chats_carry_passages_and_citations(job: MakeJob, tmp_path: Path, minilm: Path, tiny_chat: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "bread.txt").write_text("Bread rises because yeast makes gas.\n")
    (notes / "sea.txt").write_text("The sea is salty.\n")
    rag = {
        "embedding": {"type": "local", "model": str(minilm)}, "documents": {"source": {"path": str(notes)}},
        "search": {"top_k": 1}, "max_context_tokens": 80,
    }  # fmt: skip
    spec = {"serve": {"ttl": 600}, "rag": rag, "inference": {"max_tokens": 8, "temperature": 0, "system_prompt": "s"}}
    serve = job("serve", spec, model=tiny_chat, embedding_path=minilm)
    with serving(serve) as (_, told):
        for text, right in (("Why does bread rise?", "bread.txt"), ("Is the sea salty?", "sea.txt")):
            answer = ask(told, messages=question(text))
            assert answer.ok, answer.text
            choice = answer.json()["choices"][0]
            [passage] = choice["message"]["context"]["passages"]
            assert passage["payload"]["document"] == right and "citations" in choice["message"]["context"]
        lines = ask(told, messages=question("Is the sea salty?"), stream=True).text.split("\n\n")
        deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines[:-2]]
        assert deltas[-1]["context"] == choice["message"]["context"]
        assert "".join(delta.get("content", "") for delta in deltas) == choice["message"]["content"]
        wrong = ask(told, messages=question("x" * 400))
        assert wrong.status_code == 400 and "context" in wrong.json()["error"]["message"]
