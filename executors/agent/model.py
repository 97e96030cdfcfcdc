"""The model of an agent: behind an address, or an engine that is started for the stage."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from executors.base import ExecutorError
from executors.context import TaskContext
from mloc_dagster.spec.agent import Agent
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.inference import Inference

URL, NAME, KEY = "MLOC_AGENT_MODEL_URL", "MLOC_AGENT_MODEL_NAME", "MLOC_AGENT_MODEL_KEY"
"""The deployment's model, for stages that name none."""
REMOTE = "remote"
_RETRIES = 2


@dataclass(frozen=True)
class Address:
    """Where the model answers; `start` says how an engine was had: warm, cold, or remote."""

    url: str
    name: str
    api_key: str
    start: str = REMOTE
    seconds: float = 0.0


@contextmanager
def address_of(ctx: TaskContext, agent: Agent) -> Iterator[Address]:
    """Yield where the model of the stage answers, while it does. Raises ExecutorError when there is none."""
    if agent.model is not None:
        yield Address(agent.model.url, agent.model.name, agent.model.api_key or "none")
    elif ctx.model_path is not None or ctx.spec.checkpoint.load is not None:
        from executors.serving.engines import endpoint

        with endpoint(ctx) as served:
            yield Address(served.base_url, served.model, served.api_key, served.start, served.seconds)
    elif os.environ.get(URL) and os.environ.get(NAME):
        yield Address(os.environ[URL], os.environ[NAME], os.environ.get(KEY) or "none")
    else:
        raise ExecutorError(
            "The agent has no model.",
            f"Write model.source, or agent.model: {{url, name, api_key}}; a deployment can name one with {URL} and "
            f"{NAME}.",
        )


def chat_model(address: Address, inference: Inference, schema: dict[str, Json] | None = None) -> ChatOpenAI:
    """Return LangChain's model; with a JSON schema its answers are held to that.

    Of the sampling settings only those that the stage gives are sent to a server elsewhere, as servers refuse some.
    """
    given = inference.model_fields_set | (set() if address.start == REMOTE else {"temperature", "top_p"})
    native = (urlsplit(address.url).hostname or "").endswith("openai.com")
    body: dict[str, Json] = {key: getattr(inference, key) for key in ("top_k", "repetition_penalty") if key in given}
    settings: dict[str, Json] = {
        key: getattr(inference, key)
        for key in ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed")
        if key in given
    }
    if inference.do_sample is False:
        settings["temperature"] = 0.0
    if inference.stop:
        settings["stop"] = [inference.stop] if isinstance(inference.stop, str) else inference.stop
    if native:
        settings["max_completion_tokens"] = inference.max_tokens
    else:
        body["max_tokens"] = inference.max_tokens
    if schema is not None:
        format_ = {"type": "json_schema", "json_schema": {"name": "plan", "strict": True, "schema": schema}}
        settings["model_kwargs"] = {"response_format": format_}
    return ChatOpenAI(
        model=address.name, base_url=address.url, api_key=SecretStr(address.api_key), max_retries=_RETRIES,
        use_responses_api=False, disable_streaming=True, extra_body=body or None, **settings,
    )  # fmt: skip
