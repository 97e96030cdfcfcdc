"""Requests of the OpenAI protocol, as far as the engine understands them; what it does not understand is refused."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from executors.base import ExecutorError
from executors.inference.engine import Sampling
from mloc_dagster.spec.base import Json, Positive

_IGNORED = ("user", "store", "metadata", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key")


class StreamOptions(BaseModel):
    """What a stream tells beside the text."""

    include_usage: bool = False


class Generation(BaseModel):
    """Sampling settings that both routes have; they mean what `inference` means by the same names."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    stop: list[str] | str | None = None
    seed: int | None = None
    n: Annotated[int, Field(ge=1, le=64)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    """Also tell the ids of the generated tokens."""

    def sampling(self, max_tokens: int) -> Sampling:
        """The settings of an engine; raises ExecutorError for greedy n > 1."""
        greedy = self.temperature == 0
        if greedy and self.n > 1:
            raise ExecutorError(f"n is {self.n}, but temperature 0 always gives the same text.", "Raise temperature.")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_tokens=max_tokens, greedy=greedy, temperature=self.temperature, top_p=self.top_p,
            top_k=max(self.top_k, 0), repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty, frequency_penalty=self.frequency_penalty,
            stop=tuple(text for text in stop if text), n=self.n, seed=self.seed,
        )  # fmt: skip


class CompletionRequest(Generation):
    """`POST /v1/completions`. Row i of several prompts has the seed `seed + i`, as in the inference stage."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: Positive = 16


class JsonSchema(BaseModel):
    """A named schema."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    name: str = "answer"
    schema_: Annotated[dict[str, Json], Field(alias="schema")]


class ResponseFormat(BaseModel):
    """What an answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Function(BaseModel):
    """A function that a model may call; `parameters` is a JSON schema."""

    model_config = ConfigDict(extra="ignore")

    name: str
    description: str = ""
    parameters: dict[str, Json] = {"type": "object", "properties": {}}


class Tool(BaseModel):
    """One entry of `tools`."""

    type: Literal["function"] = "function"
    function: Function


class NamedFunction(BaseModel):
    """The name alone."""

    name: str


class ToolChoice(BaseModel):
    """The tool that must be called."""

    type: Literal["function"] = "function"
    function: NamedFunction


class ChatRequest(Generation):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[dict[str, Json]], Field(min_length=1)]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    tools: list[Tool] = []
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    response_format: ResponseFormat | None = None

    @property
    def choice(self) -> str:
        """`none`, `auto`, `required`, or the name of the one tool that must be called."""
        if isinstance(self.tool_choice, ToolChoice):
            return self.tool_choice.function.name
        return self.tool_choice or ("auto" if self.tools else "none")


def known_part(body: dict[str, Json]) -> dict[str, Json]:
    """The body without keys that change nothing here and that clients send by habit, and without nulls."""
    return {key: value for key, value in body.items() if key not in _IGNORED and value is not None}
