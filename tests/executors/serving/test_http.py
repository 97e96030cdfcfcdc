"""The endpoint of an engine, by HTTP."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import requests

from executors.job import Job
from executors.serving.engines import Endpoint, endpoint
from executors.tiny_llama import make_tiny_llama
from tests.executors.conftest import payload
from tests.executors.serving.conftest import context_of, only_engine

PROMPTS = ["copy: hello ->", "copy: x ->", "1 + 1 =", "The quick brown fox", "a", "b", "c", "d", "e", "f"]
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {}}}},
]
USER = [{"role": "user", "content": "copy: hello ->"}]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("models") / "chat", steps=60, chat=True)


def job_of(model: Path, out: Path, cache: Path | None, **spec: Any) -> Job:
    raw = {"task_type": "inference", "model": {"source": {"type": "local", "identifier": "tiny"}}} | spec
    return Job(task_id="t", task_name="t", stage="s", raw=raw, out=out, model_path=model, cache=cache)


@pytest.fixture(scope="module")
def served(chat_model: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    ctx = context_of(job_of(chat_model, tmp_path_factory.mktemp("out"), shared_cache))
    with endpoint(ctx) as found:
        yield found


def post(served: Endpoint, path: str, **body: Any) -> requests.Response:
    headers = {"Authorization": f"Bearer {served.api_key}"}
    return requests.post(served.base_url + path, json=body, headers=headers, timeout=120)


def chat(served: Endpoint, **body: Any) -> dict[str, Any]:
    answer = post(served, "/chat/completions", **({"model": served.model, "messages": USER} | body))
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def own_outputs(model: Path, out: Path, inference: dict[str, Any], items: list[Any] = PROMPTS) -> list[str]:
    spec = {"data": {"items": items}, "inference": inference}
    return [item["output"] for item in payload(job_of(model, out, None, **spec))["items"]]


def test_completions_are_those_of_the_stage(served: Endpoint, chat_model: Path, tmp_path: Path) -> None:
    """Plain completions take the text as it stands, so the stage gets it without a chat template."""
    body = {"max_tokens": 16, "temperature": 1.0, "top_p": 0.9, "top_k": 20, "seed": 7}
    plain = tmp_path / "plain"
    make_plain(chat_model, plain)
    found = post(served, "/completions", prompt=PROMPTS, **body).json()
    assert [one["text"] for one in found["choices"]] == own_outputs(plain, tmp_path / "own", body)
    penalties = {"max_tokens": 16, "temperature": 0, "repetition_penalty": 1.3, "presence_penalty": 0.5}
    found = post(served, "/completions", prompt=PROMPTS, **penalties).json()
    assert [one["text"] for one in found["choices"]] == own_outputs(plain, tmp_path / "own2", penalties)


def make_plain(model: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(model).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)


def test_chat_is_the_stage_s_conversation(served: Endpoint, chat_model: Path, tmp_path: Path) -> None:
    greedy = {"max_tokens": 24, "temperature": 0}
    [expected] = own_outputs(chat_model, tmp_path / "own", greedy | {"system_prompt": "be brief"}, ["copy: hello ->"])
    messages = [{"role": "system", "content": "be brief"}, *USER]
    choice = chat(served, messages=messages, **greedy)
    assert choice["message"]["content"] == expected and choice["finish_reason"] in ("stop", "length")


def test_streams_hold_the_same_text(served: Endpoint) -> None:
    for body in (
        {"temperature": 0, "max_tokens": 40},
        {"temperature": 1, "seed": 3, "max_tokens": 40, "stop": ["e", "qz"]},
    ):
        whole = chat(served, **body)
        events = stream(served, **body)
        choices = [choice for event in events for choice in event["choices"]]
        assert "".join(choice["delta"].get("content", "") for choice in choices) == whole["message"]["content"]
        assert choices[-1]["finish_reason"] == whole["finish_reason"]
        assert events[-1]["usage"]["completion_tokens"] > 0


def stream(served: Endpoint, **body: Any) -> list[dict[str, Any]]:
    asked = {"messages": USER, "stream": True, "stream_options": {"include_usage": True}} | body
    lines = post(served, "/chat/completions", **asked).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_n_and_seed(served: Endpoint) -> None:
    body = {"prompt": "x", "n": 3, "temperature": 1, "seed": 5, "max_tokens": 12}
    texts = [one["text"] for one in post(served, "/completions", **body).json()["choices"]]
    again = [one["text"] for one in post(served, "/completions", **body).json()["choices"]]
    assert texts == again and len(set(texts)) > 1
    other = [one["text"] for one in post(served, "/completions", **body | {"seed": 6}).json()["choices"]]
    assert other != texts


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("limit", [64, 200])
def test_a_forced_call_always_fits_its_schema(served: Endpoint, choice: Any, seed: int, limit: int) -> None:
    asked = {"tools": TOOLS, "tool_choice": choice, "temperature": 1.5, "seed": seed, "max_tokens": limit}
    told = chat(served, **asked)
    [call] = told["message"]["tool_calls"]
    assert told["finish_reason"] == "tool_calls" and call["id"] and call["type"] == "function"
    arguments = json.loads(call["function"]["arguments"])
    if call["function"]["name"] == "weather":
        jsonschema.validate(arguments, WEATHER)
    else:
        assert choice == "required" and call["function"]["name"] == "stop" and isinstance(arguments, dict)


def test_json_schema_is_followed(served: Endpoint) -> None:
    schema = {
        "type": "object",
        "properties": {
            "tags": {"type": "array", "items": {"type": "string"}},
            "level": {"enum": ["low", "high"]},
            "score": {"type": "number"},
        },
        "required": ["tags", "level", "score"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for seed in range(4):
        text = chat(served, response_format=wanted, temperature=1.2, seed=seed, max_tokens=120)["message"]["content"]
        jsonschema.validate(json.loads(text), schema)
    small = post(served, "/chat/completions", messages=USER, response_format=wanted, max_tokens=5)
    assert small.status_code == 400 and "shortest answer" in small.json()["error"]["message"]


def test_a_free_answer_with_tools_and_a_conversation_with_their_results(served: Endpoint) -> None:
    told = chat(served, tools=TOOLS, temperature=0, max_tokens=12)
    assert told["message"]["content"] and "tool_calls" not in told["message"]
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "a", "days": 1}'}}
    turns = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "rain"},
    ]
    assert chat(served, messages=turns, tools=TOOLS, temperature=0, max_tokens=4)["message"]["content"]


def test_two_users_at_once_get_what_each_gets_alone(served: Endpoint) -> None:
    def one(prompt: str) -> str:
        body = {"prompt": prompt, "max_tokens": 30, "temperature": 0}
        return post(served, "/completions", **body).json()["choices"][0]["text"]

    alone = [one(prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, PROMPTS)) == alone


def test_wrong_or_no_token_is_401(served: Endpoint) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": served.api_key}):
        for path in ("/models", "/chat/completions"):
            assert requests.get(served.base_url + path, headers=headers, timeout=30).status_code == 401
    assert requests.get(served.base_url.removesuffix("/v1") + "/health", timeout=30).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"prompt": "a", "temperature": -1}, 400, "temperature"),
        ({"prompt": "a", "logit_bias": {"1": 2}}, 400, "logit_bias"),
        ({"prompt": "a", "n": 2, "temperature": 0}, 400, "always gives the same text"),
        ({"prompt": "a", "model": "other"}, 404, "not served here"),
        ({"prompt": ""}, 400, "empty"),
        ({}, 400, "prompt"),
    ],
)
def test_faults_are_told(served: Endpoint, body: dict[str, Any], status: int, told: str) -> None:
    answer = post(served, "/completions", **body)
    assert answer.status_code == status and told in answer.json()["error"]["message"]


def test_the_token_is_in_one_private_file_alone(served: Endpoint, shared_cache: Path) -> None:
    folder = only_engine(shared_cache)
    assert stat.S_IMODE((folder.path / "secret").stat().st_mode) == 0o600
    holders = [path.name for path in folder.path.rglob("*") if path.is_file() and served.api_key in path.read_text()]
    assert holders == ["secret"]
    assert served.api_key not in Path(f"/proc/{folder.state().pid}/cmdline").read_text()  # type: ignore[union-attr]
