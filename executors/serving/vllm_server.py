"""Serves with vLLM's own OpenAI server, as a child of the engine process that watches over it."""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import requests

from executors.base import ExecutorError
from executors.parent import end_with_parent
from executors.serving.registry import EngineFolder, EngineSpec, EngineState
from mloc_dagster.spec.base import Json

_SERVER = "vllm.entrypoints.openai.api_server"
_POLL_SECONDS = 0.2
_PARSERS = (("[TOOL_CALLS]", "mistral"), ("<|python_tag|>", "llama3_json"))
"""Marks of chat templates whose models write calls in another way than most."""


def serve(folder: EngineFolder, spec: EngineSpec, state: EngineState) -> None:
    """Start the server, tell when it answers, and return when it has ended; raises ExecutorError when it cannot."""
    port = _free_port()
    command = [sys.executable, "-u", "-m", "executors.serving.vllm_server", *arguments(spec, port)]
    server = subprocess.Popen(command, env=os.environ | _environment(folder, spec))
    while not _answers(port):
        if server.poll() is not None:
            raise ExecutorError(
                f"vLLM cannot load the model: {_reason(folder)}", "Check model.vllm; the engine's log says more."
            )
        time.sleep(_POLL_SECONDS)
    ready = {"port": port, "ready": True, "context": _context(folder, port), "chat_template": _has_chat(folder, port)}
    folder.write_state(state.model_copy(update=ready))
    code = server.wait()
    raise RuntimeError(f"vLLM ended with exit code {code}")


def arguments(spec: EngineSpec, port: int) -> list[str]:
    """The command line of vLLM's server for an engine; raises ExecutorError for an argument that vLLM does not have."""
    options: dict[str, Json] = spec.vllm.model_dump(
        exclude_none=True, exclude={"tensor_parallel_size", "trust_remote_code", "dtype"}
    )
    options |= {"tensor_parallel_size": min(spec.vllm.tensor_parallel_size, max(1, len(spec.devices)))}
    if not spec.on_gpu:
        options.pop("gpu_memory_utilization", None)
        options.setdefault("enforce_eager", True)
    options |= {
        "model": str(spec.model), "served_model_name": spec.name, "dtype": spec.dtype, "host": "127.0.0.1",
        "port": port, "enable_auto_tool_choice": True, "tool_call_parser": _parser(spec),
    }  # fmt: skip
    if spec.trust_remote_code:
        options["trust_remote_code"] = True
    if spec.lora_rank:
        options |= {"enable_lora": True, "max_lora_rank": spec.lora_rank}
    return [word for key, value in options.items() for word in _flag(key, value)]


def _flag(key: str, value: Json) -> list[str]:
    name = f"--{key.replace('_', '-')}"
    if isinstance(value, bool):
        return [name if value else f"--no-{name[2:]}"]
    if isinstance(value, list):
        return [name, *map(str, value)]
    return [name, json.dumps(value) if isinstance(value, dict) else str(value)]


def _parser(spec: EngineSpec) -> str:
    template = spec.model / "chat_template.jinja"
    config = spec.model / "tokenizer_config.json"
    text = "".join(path.read_text("utf-8", "replace") for path in (template, config) if path.exists())
    return next((parser for mark, parser in _PARSERS if mark in text), "hermes")


def _environment(folder: EngineFolder, spec: EngineSpec) -> dict[str, str]:
    """The token goes by the environment: a command line can be seen by everybody on the machine."""
    given = {
        "VLLM_API_KEY": folder.token(),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": os.environ.get("VLLM_CACHE_ROOT", str(folder.path / "vllm")),
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    }
    if not spec.on_gpu:
        given["VLLM_CPU_KVCACHE_SPACE"] = os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")
    return given


def _answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok
    except requests.RequestException:
        return False


def _context(folder: EngineFolder, port: int) -> int | None:
    models = requests.get(f"http://127.0.0.1:{port}/v1/models", headers=_headers(folder), timeout=60).json()
    return models["data"][0].get("max_model_len")


def _has_chat(folder: EngineFolder, port: int) -> bool:
    """Whether the model has a chat template: vLLM refuses messages when it has none."""
    body = {"messages": [{"role": "user", "content": "x"}]}
    return requests.post(f"http://127.0.0.1:{port}/tokenize", json=body, headers=_headers(folder), timeout=60).ok


def _headers(folder: EngineFolder) -> dict[str, str]:
    return {"Authorization": f"Bearer {folder.token()}"}


def _reason(folder: EngineFolder) -> str:
    """The last error in the log, or its end."""
    lines = folder.log_tail(200).splitlines()
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["it said nothing"])[-1].strip()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> Any:
    """Run vLLM's server, which ends when the engine process that watches over it does."""
    end_with_parent(signal.SIGTERM)
    runpy.run_module(_SERVER, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
