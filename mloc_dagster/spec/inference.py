"""`spec.inference` and `spec.postprocess`: how a stage generates and exports."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mloc_dagster.spec.base import Json, Positive, Section, also


class Inference(Section):
    """Sampling settings; both engines read them alike."""

    system_prompt: Annotated[str | None, also("systemPrompt")] = None
    prompts: list[Json] | None = None
    max_tokens: Annotated[Positive, also("max_new_tokens")] = 512
    temperature: Annotated[float, Field(ge=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    top_k: Annotated[int | None, Field(ge=-1)] = None
    do_sample: bool | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    stop: Annotated[list[str] | str, also("stop_sequences")] = []
    seed: int | None = None
    n: Positive = 1


class ExportField(Section):
    """Where one exported field comes from."""

    source: Annotated[Literal["prompt", "output", "metadata", "item", "literal"], also("from")] = "output"
    key: str | None = None
    value: Annotated[Json, also("literal")] = None
    fallback: Json = None
    default: Json = None


class JsonlExport(Section):
    """One JSON line per generated item."""

    path: str = "export.jsonl"
    fields: dict[str, ExportField | Json] = {"prompt": "prompt", "output": "output"}
    required_fields: list[str] = []


class Postprocess(Section):
    """What happens to the items after generation."""

    jsonl_export: JsonlExport | None = None
